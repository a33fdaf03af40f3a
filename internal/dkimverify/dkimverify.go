// Package dkimverify verifies the DKIM signatures of a message (RFC 6376, RFC
// 8463) while it comes in, without holding it in memory.
package dkimverify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-msgauth/dkim"
)

// MaxIdle is how long a verification waits for more of a message. Postfix
// hands a whole message to a milter in one go.
const MaxIdle = 5 * time.Minute

// ahead is how far the clock of a signer may be ahead of ours.
const ahead = time.Hour

// Results of a signature, as in Authentication-Results (RFC 8601 section
// 2.7.1).
const (
	Pass      = "pass"
	Fail      = "fail"
	Policy    = "policy" // it may be valid, and does not count
	TempError = "temperror"
	PermError = "permerror"
)

// Signature is what was found out about one signature.
type Signature struct {
	// Domain is d=, without white space and otherwise as it is written. It can
	// hold anything.
	Domain string
	// Selector is s=, Algorithm a= and Prefix the first eight characters of b=
	// (RFC 6008). They can hold anything.
	Selector, Algorithm, Prefix string
	// Result is one of the constants, and Reason says why it is not a pass.
	Result, Reason string
}

// Options are for one message.
type Options struct {
	// LookupTXT returns the texts of a key record, none if it does not exist.
	// An error is temporary.
	LookupTXT func(ctx context.Context, name string) ([]string, error)
	// Limit is the most time for one look-up.
	Limit time.Duration
	// Most is how many signatures are looked at, the first ones.
	Most int
	// Now is when the message came: a signature from the future does not count.
	// The zero value does not look.
	Now time.Time
}

// ErrUnfinished is returned when the signatures could not be looked at to the
// end.
var ErrUnfinished = errors.New("the signatures were not verified in time")

// Message verifies the signatures of one message. It is used by one goroutine.
type Message struct {
	in     *io.PipeWriter
	idle   *time.Timer // ends it when nobody else does
	gone   atomic.Bool // the timer has
	cancel context.CancelFunc
	done   chan struct{} // closed when found is set
	found  []Signature
	full   bool // no more of the body is needed
}

// Start begins with the header, all fields in the order in which they came,
// each with its CRLF. Write or Wait follow; who does neither calls Abandon.
func Start(header string, o Options) *Message {
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	m := &Message{in: in, cancel: cancel, done: make(chan struct{})}
	m.idle = time.AfterFunc(MaxIdle, func() {
		m.gone.Store(true)
		m.Abandon()
	})
	go func() {
		defer close(m.done)
		defer cancel()
		defer m.idle.Stop()
		defer func() { _ = out.Close() }() // writers must not wait for us
		m.run(ctx, header, out, &o)
	}()
	return m
}

func (m *Message) run(ctx context.Context, header string, body io.Reader, o *Options) {
	m.found = described(header, o.Most)
	defer func() {
		// The library reads what strangers write.
		if cause := recover(); cause != nil {
			m.spoil(fmt.Sprint("panic: ", cause))
		}
	}()
	verified, err := dkim.VerifyWithOptions(io.MultiReader(strings.NewReader(header+"\r\n"), body), &dkim.VerifyOptions{
		MaxVerifications: o.Most,
		LookupTXT: func(name string) ([]string, error) {
			c, cancel := context.WithTimeout(ctx, o.Limit)
			defer cancel()
			texts, err := o.LookupTXT(c, name)
			switch {
			case err != nil:
				return nil, &net.DNSError{Err: err.Error(), Name: name, IsTemporary: true}
			case len(texts) == 0:
				return nil, &net.DNSError{Err: "no such record", Name: name, IsNotFound: true}
			}
			return texts, nil
		},
	})
	if len(verified) != len(m.found) {
		m.spoil(fmt.Sprint("the header cannot be read: ", err))
		return
	}
	for i, v := range verified {
		m.found[i].judge(v, o.Now)
	}
}

// spoil says of all signatures that they could not be verified.
func (m *Message) spoil(why string) {
	for i := range m.found {
		m.found[i].Result, m.found[i].Reason = PermError, why
	}
}

// judge takes over what the library has found.
func (s *Signature) judge(v *dkim.Verification, now time.Time) {
	switch {
	case v.Err == nil && !now.IsZero() && v.Time.After(now.Add(ahead)):
		s.Result, s.Reason = Policy, "signed in the future"
	case v.Err == nil:
		s.Result, s.Reason = Pass, ""
	case s.Result == Policy: // for its body length, which the library refuses
	case dkim.IsTempFail(v.Err):
		s.Result, s.Reason = TempError, reason(v.Err)
	case dkim.IsPermFail(v.Err):
		s.Result, s.Reason = PermError, reason(v.Err)
	default:
		s.Result, s.Reason = Fail, reason(v.Err)
	}
}

func reason(err error) string { return strings.TrimPrefix(err.Error(), "dkim: ") }

// described returns what the signatures of a header say of themselves, the
// first most of them.
func described(header string, most int) (out []Signature) {
	for field := range fields(header) {
		name, value, _ := strings.Cut(field, ":")
		if !strings.EqualFold(strings.TrimRight(name, " \t"), "DKIM-Signature") {
			continue
		}
		if len(out) == most {
			break
		}
		s := Signature{Result: PermError}
		for tag := range strings.SplitSeq(value, ";") {
			name, value, _ := strings.Cut(tag, "=")
			value = strings.Join(strings.Fields(value), "")
			switch strings.TrimSpace(name) {
			case "d":
				s.Domain = value
			case "s":
				s.Selector = value
			case "a":
				s.Algorithm = value
			case "b":
				s.Prefix = value[:min(len(value), 8)]
			case "l":
				s.Result, s.Reason = Policy, "only a part of the body is signed (l=)"
			}
		}
		out = append(out, s)
	}
	return out
}

// fields yields the fields of a header, folded lines joined as they are.
func fields(header string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for header != "" {
			end := 0
			for {
				i := strings.Index(header[end:], "\r\n")
				if i < 0 {
					end = len(header)
					break
				}
				if end += i + 2; end == len(header) || header[end] != ' ' && header[end] != '\t' {
					break
				}
			}
			if !yield(header[:end]) {
				return
			}
			header = header[end:]
		}
	}
}

// Write gives it the next bytes of the body, and reports whether it needs more.
func (m *Message) Write(p []byte) (more bool) {
	if m.full {
		return false
	}
	m.idle.Reset(MaxIdle)
	_, err := m.in.Write(p)
	m.full = err != nil
	return !m.full
}

// Wait ends the message and returns its signatures, in their order. The error
// is [ErrUnfinished]; nothing is known then.
func (m *Message) Wait(ctx context.Context) ([]Signature, error) {
	_ = m.in.Close() // it has no error to tell
	select {
	case <-m.done:
		if m.gone.Load() {
			return nil, ErrUnfinished // of a part of the message
		}
		return m.found, nil
	case <-ctx.Done():
		m.cancel()
		return nil, ErrUnfinished
	}
}

// Abandon ends it without a judgement: by the end of the input, not by an
// error, since the library leaves goroutines behind when a read fails.
func (m *Message) Abandon() {
	m.cancel()
	_ = m.in.Close() // it has no error to tell
}

// Header gathers the header of a message in the form that [Start] takes. The
// zero value is empty.
type Header struct {
	text    strings.Builder
	hostile string
}

// maxHeader bounds what is kept of a header; Postfix cuts at 60000 bytes when
// a milter is there.
const maxHeader = 1 << 20

// Add adds a field; value is all behind the colon, lines joined by LF.
func (h *Header) Add(name, value string) {
	if h.hostile != "" {
		return
	}
	for rest := value; ; {
		_, next, more := strings.Cut(rest, "\n")
		if !more {
			break
		}
		if next == "" || next[0] != ' ' && next[0] != '\t' {
			h.hostile = "a header field with a line that does not belong to it"
			return
		}
		rest = next
	}
	if h.text.Len()+len(name)+len(value) > maxHeader {
		h.hostile = "the header is too large"
		return
	}
	h.text.WriteString(name)
	h.text.WriteByte(':')
	h.text.WriteString(strings.ReplaceAll(value, "\n", "\r\n"))
	h.text.WriteString("\r\n")
}

// Hostile says why the header cannot be trusted at all, "" when it can.
func (h *Header) Hostile() string { return h.hostile }

// Take returns the header and empties h.
func (h *Header) Take() string {
	out := h.text.String()
	h.text.Reset()
	return out
}
