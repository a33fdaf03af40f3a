package journal

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"postern/internal/reference"
)

// Shelf keeps traces that several gateways share. It is safe for concurrent
// use, bounded, and fails rather than wait when it is out of order.
type Shelf interface {
	// PutTrace keeps the trace of a node's decision, for as long as keep at most.
	PutTrace(ctx context.Context, node uint8, ref string, trace []byte, keep time.Duration) error
	// Trace returns the trace with a reference of a node, nil if there is none.
	// minute is when the decision was made.
	Trace(ctx context.Context, node uint8, ref string, minute time.Time) ([]byte, error)
}

// maxShared is how many traces wait to be shared.
const maxShared = 1024

// sharer puts traces on the shelf, in a goroutine of its own: neither decisions
// nor the disk wait for it.
type sharer struct {
	shelf  Shelf
	keep   time.Duration
	queue  chan shared
	quit   chan struct{}
	lost   atomic.Uint64
	ctx    context.Context // ends when it must
	cancel context.CancelFunc
	once   sync.Once
	done   sync.WaitGroup
}

type shared struct {
	ref  reference.Ref
	text []byte
}

func newSharer(shelf Shelf, keep time.Duration) *sharer {
	s := &sharer{shelf: shelf, keep: keep, queue: make(chan shared, maxShared), quit: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// put takes a copy. It does not wait.
func (s *sharer) put(ref reference.Ref, text []byte) {
	if len(s.queue) == cap(s.queue) {
		s.lost.Add(1)
		return
	}
	select {
	case s.queue <- shared{ref, slices.Clone(text)}:
	default:
		s.lost.Add(1)
	}
}

func (s *sharer) start() { s.done.Go(s.run) }

func (s *sharer) run() {
	enc := newEncoder()
	defer enc.Close() //nolint:errcheck // it holds nothing
	for {
		select {
		case one := <-s.queue:
			s.shelve(&one, enc)
			continue
		default:
		}
		select {
		case one := <-s.queue:
			s.shelve(&one, enc)
		case <-s.quit:
			if len(s.queue) == 0 {
				return
			}
		}
	}
}

func (s *sharer) shelve(one *shared, enc *zstd.Encoder) {
	// The library may still use what a call that has given up was given.
	packed := enc.EncodeAll(one.text, nil)
	if s.shelf.PutTrace(s.ctx, one.ref.Node(), one.ref.String(), packed, s.keep) != nil {
		s.lost.Add(1) // the store says why
	}
}

// stop shares what waits, until ctx ends.
func (s *sharer) stop(ctx context.Context) {
	s.once.Do(func() {
		close(s.quit)
		end := context.AfterFunc(ctx, s.cancel)
		s.done.Wait()
		end()
		s.cancel()
	})
}

// find returns the record with a reference from the shelf, nil if it is not
// there.
func (s *sharer) find(ctx context.Context, ref reference.Ref) (*Record, error) {
	packed, err := s.shelf.Trace(ctx, ref.Node(), ref.String(), ref.Minute(time.Now().Add(reference.Wrap/2)))
	if packed == nil || err != nil {
		return nil, err
	}
	dec := newDecoder()
	defer dec.Close()
	text, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("journal: shared trace of %s: %w", ref, err)
	}
	return ReadRecord(text)
}
