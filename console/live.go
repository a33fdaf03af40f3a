package console

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"postern/internal/page"
)

// live hands what happens to all who look on. One listener at the daemon serves
// them all; it is there while somebody looks.
type live struct {
	source func(ctx context.Context, yield func(page.Event) bool) error
	log    *zap.Logger

	mu     sync.Mutex
	all    map[chan []byte]struct{}
	stop   context.CancelFunc // nil: nobody listens
	closed bool
	work   sync.WaitGroup
}

const (
	// maxLive is how many can look on.
	maxLive = 1000
	// liveRoom is how many events wait for each; those who are slower miss some.
	liveRoom = 64
	// liveBeat is how often it is tried whether somebody is still there.
	liveBeat = 15 * time.Second
	// liveRetry is after how long the daemon is listened to again.
	liveRetry = time.Second
)

func newLive(source func(context.Context, func(page.Event) bool) error, log *zap.Logger) *live {
	return &live{source: source, log: log, all: make(map[chan []byte]struct{})}
}

// join returns a channel of events, nil when there is no room; leave ends it.
func (l *live) join() (events chan []byte, leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.source == nil || len(l.all) >= maxLive {
		return nil, nil
	}
	events = make(chan []byte, liveRoom)
	l.all[events] = struct{}{}
	if l.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		l.stop = cancel
		l.work.Go(func() { l.listen(ctx) })
	}
	return events, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if _, ok := l.all[events]; !ok {
			return // closed
		}
		delete(l.all, events)
		if len(l.all) == 0 {
			l.stop()
			l.stop = nil
		}
	}
}

// listen hands on what happens until ctx ends.
func (l *live) listen(ctx context.Context) {
	for {
		err := l.source(ctx, func(e page.Event) bool {
			l.tell(ctx, e)
			return ctx.Err() == nil
		})
		if ctx.Err() != nil {
			return
		}
		l.log.Warn("the live view has lost the daemon", zap.Error(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(liveRetry):
		}
	}
}

func (l *live) tell(ctx context.Context, e page.Event) {
	text, err := eventText(e)
	if err != nil {
		l.log.Error("an event could not be written", zap.Error(err))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return // those who look on now have another listener
	}
	for events := range l.all {
		select {
		case events <- text:
		default: // it reads too slowly
		}
	}
}

// eventText is an event as browsers take it: a row of the table, made as all rows
// are.
func eventText(e page.Event) ([]byte, error) {
	var row bytes.Buffer
	f := &frame{Now: time.Now(), Body: &body{View: &page.View{}, Page: &page.Page{}}}
	if err := templates.ExecuteTemplate(&row, "row", scope{[]page.Cell(e), f}); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for line := range bytes.Lines(bytes.TrimSpace(row.Bytes())) {
		out.WriteString("data: ")
		out.Write(bytes.TrimRight(line, "\r\n"))
		out.WriteByte('\n')
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// close ends all views and waits for the listener.
func (l *live) close() {
	l.mu.Lock()
	l.closed = true
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
	for events := range l.all {
		close(events)
		delete(l.all, events)
	}
	l.mu.Unlock()
	l.work.Wait()
}

// serveLive streams events (text/event-stream) until the browser or the session is
// gone.
func (s *Server) serveLive(v *visit) {
	events, leave := s.live.join()
	if events == nil {
		v.fail(http.StatusServiceUnavailable, "Too many are looking on.")
		return
	}
	defer leave()
	c := http.NewResponseController(v.w)
	v.w.Header().Set("Content-Type", "text/event-stream")
	v.w.Header().Set("X-Accel-Buffering", "no") // nginx hands it on at once
	write := func(text []byte) bool {
		_ = c.SetWriteDeadline(time.Now().Add(writeIn)) // then Flush fails
		_, err := v.w.Write(text)
		return err == nil && c.Flush() == nil
	}
	if !write([]byte(fmt.Sprintf("retry: %d\n\n", 3*liveRetry.Milliseconds()))) {
		return
	}
	beat := time.NewTicker(liveBeat)
	defer beat.Stop()
	for {
		select {
		case <-v.r.Context().Done():
			return
		case text, ok := <-events:
			if !ok || !write(text) {
				return
			}
		case now := <-beat.C:
			if !s.sessions.alive(v.session, now) || s.holds(v.session) == nil || !write([]byte(": beat\n\n")) {
				return
			}
		}
	}
}
