package journal

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/policy"
)

// shelf is a Shelf in memory.
type shelf struct {
	mu     sync.Mutex
	traces map[string][]byte
	fault  error
	hang   chan struct{} // PutTrace waits for it; nil: it does not
}

func (s *shelf) PutTrace(ctx context.Context, node uint8, ref string, trace []byte, _ time.Duration) error {
	if s.hang != nil {
		select {
		case <-s.hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if node != 3 {
		return errors.New("another node's")
	}
	if s.fault == nil {
		s.traces[ref] = trace
	}
	return s.fault
}

func (s *shelf) Trace(_ context.Context, node uint8, ref string, _ time.Time) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if node != 3 {
		return nil, errors.New("another node's")
	}
	return s.traces[ref], s.fault
}

func (s *shelf) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = err
}

func sharing(t *testing.T, s *shelf) *Journal {
	t.Helper()
	cfg := config()
	cfg.Share, cfg.Keep = true, KeepAll
	j := New(cfg, Options{Dir: filepath.Join(t.TempDir(), "j"), Shelf: s, References: refs, Log: zap.NewNop()})
	j.Start()
	t.Cleanup(func() { j.Stop(context.Background()) })
	return j
}

func TestShare(t *testing.T) {
	s := &shelf{traces: map[string][]byte{}}
	a, b := sharing(t, s), sharing(t, s)
	ref := record(a, time.Now(), 1)
	a.Record(&policy.Request{Time: time.Now()}, &policy.Decision{}) // refuses nobody
	a.Stop(t.Context())                                             // shares what waits
	if r := find(t, b, ref); r == nil || r.Sender != "S1@Example.ORG" || len(r.Decision.Steps) != 2 {
		t.Errorf("on another node: %+v", r)
	}
	if len(s.traces) != 1 || a.Status().Unshared != 0 || !a.Status().Shared {
		t.Errorf("%d are shared; %+v", len(s.traces), a.Status())
	}
	if r := find(t, b, refs.Next(time.Now()).String()); r != nil {
		t.Errorf("found %+v", r)
	}
	s.broken(errors.New("no Redis"))
	if _, err := b.Find(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "no Redis") {
		t.Error(err)
	}
	own := record(b, time.Now(), 2)
	if find(t, b, own) == nil {
		t.Error("its own is not found")
	}
	b.Stop(t.Context())
	if st := b.Status(); st.Unshared != 1 || st.Written != 1 || st.Fault != "" {
		t.Errorf("%+v", st)
	}
	s.broken(nil)
	s.traces[ref] = []byte("rubbish")
	if _, err := b.Find(t.Context(), ref); err == nil {
		t.Error("rubbish is a trace")
	}
}

// A shelf that hangs holds up neither the files nor, for longer than it may
// take, the end.
func TestShelfThatHangs(t *testing.T) {
	j := sharing(t, &shelf{traces: map[string][]byte{}, hang: make(chan struct{})})
	for i := range maxShared + 100 {
		record(j, time.Now(), i%100)
		if i%50 == 0 {
			j.write.flush(t.Context())
		}
	}
	j.write.flush(t.Context())
	if st := j.Status(); st.Written != maxShared+100 || st.Unshared < 90 {
		t.Errorf("%+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	j.Stop(ctx)
	j.write.done.Wait()
	if st := j.Status(); st.Unshared != maxShared+100 {
		t.Errorf("%+v", st)
	}
}
