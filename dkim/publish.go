package dkim

import (
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"postern/internal/dkimsig"
)

// Standing is what the DNS has for a key.
type Standing string

// The standings.
const (
	Unknown   Standing = "unknown"   // nobody has asked, or there was never an answer
	Published Standing = "published" // the key that signs
	Missing   Standing = "missing"   // there is no record
	Other     Standing = "other-key" // the record is of another key
	Revoked   Standing = "revoked"   // p= is empty
	Faulty    Standing = "faulty"    // the record cannot be used
)

// State is what is known of the record of a key.
type State struct {
	Standing Standing `json:"standing"`
	// Problem says what is wrong, or why the last question had no answer.
	Problem string `json:"problem,omitempty"`
	// Notes are what should be known of a record that is good.
	Notes   []string  `json:"notes,omitempty"`
	Checked time.Time `json:"checked,omitzero"`
}

// good reports whether the record is known to be that of the key.
func (s *State) good() bool { return s != nil && s.Standing == Published }

// usable reports whether the key may sign: nothing speaks against it.
func (s *State) usable() bool { return s == nil || s.Standing == Published || s.Standing == Unknown }

// judgeRecord holds the records that stand under a key's name against it.
func judgeRecord(texts []string, k *key) (s State) {
	if len(texts) == 0 {
		return State{Standing: Missing, Problem: "there is no record"}
	}
	for _, text := range texts {
		one := judgeText(text, k)
		if s.Standing == "" || one.Standing == Published {
			s = one
		}
		if one.Standing == Published {
			break
		}
	}
	if n := len(texts); n > 1 {
		note := fmt.Sprintf("there are %d records, and a verifier may take any of them", n)
		if s.Standing == Published {
			s.Notes = append(s.Notes, note)
		} else {
			s.Problem += "; " + note
		}
	}
	return s
}

func judgeText(text string, k *key) State {
	public, err := dkimsig.ParseKey(text)
	switch {
	case errors.Is(err, dkimsig.ErrRevoked):
		return State{Standing: Revoked, Problem: "the key is revoked (p= is empty)"}
	case err != nil:
		return State{Standing: Faulty, Problem: err.Error()}
	case public.Algorithm() != k.algorithm:
		return State{Standing: Other, Problem: fmt.Sprintf("the record is of an %s key, and the one that signs is %s", kindName(public.Algorithm()), kindName(k.algorithm))}
	case encodePublic(public) != k.record:
		return State{Standing: Other, Problem: "the record is of another key than the one that signs"}
	case public.Hashes != nil && !slices.Contains(public.Hashes, "sha256"):
		return State{Standing: Faulty, Problem: "the record does not allow SHA-256 (h=)"}
	}
	s := State{Standing: Published}
	if public.Testing {
		s.Notes = append(s.Notes, "t=y: the record says that the domain tests its keys, so a verifier may take its mail for unsigned")
	}
	if public.Hashes != nil {
		s.Notes = append(s.Notes, "h= is not needed")
	}
	return s
}

// encodePublic returns p= as we would write it.
func encodePublic(k *dkimsig.Key) string {
	switch public := k.Public.(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return ""
		}
		return base64.StdEncoding.EncodeToString(der)
	case ed25519.PublicKey:
		return base64.StdEncoding.EncodeToString(public)
	}
	return ""
}

func kindName(algorithm string) string {
	if algorithm == "rsa" {
		return "RSA"
	}
	return "Ed25519"
}

// Resolver is asked for records.
type Resolver interface {
	// LookupTXT returns one text for each record, none when there is none. An
	// error is temporary.
	LookupTXT(ctx context.Context, name string) ([]string, error)
	// Forget drops what is remembered of a name.
	Forget(name string)
}

// watcher asks for the records in the background.
type watcher struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// again is when a record that is not good is asked for again.
const again = time.Minute

// atOnce is how many records are asked for at a time.
const atOnce = 8

// Start begins to ask for the records of the keys.
func (c *Check) Start() {
	if !c.watches() {
		return
	}
	c.shared.usable.Reset()
	ctx, cancel := context.WithCancel(context.Background())
	c.watcher = &watcher{cancel, make(chan struct{})}
	go c.watch(ctx, c.watcher.done)
}

// watch asks until ctx is done.
func (c *Check) watch(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	var all time.Time // when all were asked for
	for {
		now := time.Now()
		due := c.ring.keys
		if now.Sub(all) < c.cfg.CheckInterval.D() {
			due = slices.DeleteFunc(slices.Clone(due), func(k *key) bool { return k.state.Load().good() })
		} else {
			all = now
		}
		c.ask(ctx, due)
		wait := time.Until(all.Add(c.cfg.CheckInterval.D()))
		if slices.ContainsFunc(c.ring.keys, func(k *key) bool { return k.domain != "" && !k.state.Load().good() }) {
			wait = min(wait, again)
		}
		timer := time.NewTimer(max(wait, time.Second))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() {
	if c.watcher == nil {
		return
	}
	c.watcher.cancel()
	<-c.watcher.done
	c.watcher = nil
}

func (c *Check) watches() bool { return c.on() && c.cfg.CheckDNS && len(c.ring.keys) > 0 }

// ask asks for the records of keys, and remembers what it learns.
func (c *Check) ask(ctx context.Context, keys []*key) {
	var wg sync.WaitGroup
	room := make(chan struct{}, atOnce)
	for _, k := range keys {
		if k.domain == "" {
			continue // it signs for any, and has no record of its own
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			wg.Wait()
			return
		}
		wg.Go(func() {
			defer func() { <-room }()
			c.askOne(ctx, k)
		})
	}
	wg.Wait()
}

// askOne asks for the record of a key. Without an answer what was known stays.
func (c *Check) askOne(ctx context.Context, k *key) State {
	name := k.name(k.domain)
	old := k.state.Load()
	if old != nil && !old.good() {
		c.res.Forget(name)
	}
	one, cancel := context.WithTimeout(ctx, c.cfg.LookupTime.D())
	defer cancel()
	texts, err := c.res.LookupTXT(one, name)
	if ctx.Err() != nil {
		return State{Standing: Unknown}
	}
	now := time.Now()
	if err != nil {
		s := State{Standing: Unknown, Problem: "the DNS did not answer: " + err.Error(), Checked: now}
		if old != nil {
			s.Standing, s.Notes = old.Standing, old.Notes
			if old.Standing != Unknown && old.Standing != Published {
				s.Problem = old.Problem
			}
		}
		k.state.Store(&s)
		return s
	}
	s := judgeRecord(texts, k)
	s.Checked = now
	k.state.Store(&s)
	c.shared.usable.WithLabelValues(c.label(k.domain), c.label(k.selector)).Set(number(s.usable()))
	was := Unknown
	if old != nil {
		was = old.Standing
	}
	if was == s.Standing {
		return s
	}
	fields := []zap.Field{zap.String("domain", k.domain), zap.String("selector", k.selector), zap.String("record", name), zap.String("standing", string(s.Standing))}
	switch {
	case !s.usable():
		c.log.Warn("a key is not used: its record is not good", append(fields, zap.String("problem", s.Problem))...)
	case was != Unknown:
		c.log.Info("a key is used again: its record is good", fields...)
	}
	return s
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
