package provider

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postern/internal/mailaddr"
)

// maxIdle is how long a verification waits for more of a message. Postfix
// hands a whole message to a milter in one go.
const maxIdle = 5 * time.Minute

// maxSignatures is how many DKIM signatures of a message are looked at.
const maxSignatures = 5

// signatures verifies the DKIM signatures of one message while it comes in.
type signatures struct {
	in     *io.PipeWriter
	idle   *time.Timer // ends it when nobody else does
	gone   atomic.Bool // the timer has
	cancel context.CancelFunc
	done   chan struct{} // closed when what follows is set
	valid  []string      // domains that signed, in the compared form
	err    error         // something could not be found out
	full   bool          // no more of the body is needed; only for the feeder
}

// verify begins with the header, all fields in the order in which they came,
// each with its line end. limit bounds the look-ups of keys.
func verify(res Resolver, header string, limit time.Duration) *signatures {
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	s := &signatures{in: in, cancel: cancel, done: make(chan struct{})}
	s.idle = time.AfterFunc(maxIdle, func() {
		s.gone.Store(true)
		s.abandon()
	})
	go func() {
		defer close(s.done)
		defer cancel()
		defer s.idle.Stop()
		defer func() { _ = out.Close() }() // writers must not wait for us
		s.run(ctx, io.MultiReader(strings.NewReader(header+"\r\n"), out), res, limit)
	}()
	return s
}

func (s *signatures) run(ctx context.Context, message io.Reader, res Resolver, limit time.Duration) {
	defer func() {
		// The library reads what strangers write.
		if cause := recover(); cause != nil {
			s.valid, s.err = nil, fmt.Errorf("verifying DKIM: panic: %v", cause)
		}
	}()
	found, err := dkim.VerifyWithOptions(message, &dkim.VerifyOptions{
		MaxVerifications: maxSignatures,
		LookupTXT: func(name string) ([]string, error) {
			c, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			texts, _, _, err := res.LookupTXT(c, name)
			switch {
			case err != nil:
				return nil, &net.DNSError{Err: err.Error(), Name: name, IsTemporary: true}
			case len(texts) == 0:
				return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
			}
			return texts, nil
		},
	})
	for _, v := range found {
		switch {
		case v.Err == nil:
			s.valid = append(s.valid, mailaddr.Domain(v.Domain))
		case dkim.IsTempFail(v.Err):
			s.err = errUnknown
		}
	}
	// More signatures than are looked at, or a header that cannot be read:
	// what is valid counts, nothing else does.
	_ = err
}

// write gives it the next bytes of the body, and reports whether it needs more.
func (s *signatures) write(p []byte) bool {
	if s.full {
		return false
	}
	s.idle.Reset(maxIdle)
	_, err := s.in.Write(p)
	s.full = err != nil
	return !s.full
}

// wait ends the message and returns the domains that signed it; err says that
// others may have done so too.
func (s *signatures) wait(ctx context.Context) ([]string, error) {
	_ = s.in.Close() // it has no error to tell
	select {
	case <-s.done:
		if s.gone.Load() {
			return nil, errUnknown // of a part of the message
		}
		return s.valid, s.err
	case <-ctx.Done():
		s.cancel()
		return nil, errUnknown
	}
}

// abandon ends it without a judgement: by the end of the input, not by an
// error, since the library leaves goroutines behind when a read fails.
func (s *signatures) abandon() {
	s.cancel()
	_ = s.in.Close() // it has no error to tell
}
