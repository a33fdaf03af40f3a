package journal

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/zap"
)

const (
	// blockSize is after how many bytes a block is written, flushEvery after
	// which time: the most that a kill -9 loses.
	blockSize  = 256 << 10
	flushEvery = time.Second
	// lookEvery is how often the ring is looked at while decisions come.
	lookEvery = 50 * time.Millisecond
	// retryEvery is how often a disk is tried again that could not be written.
	retryEvery = 5 * time.Second
	// Segments are a part of what all may have, and not larger than this.
	maxSegment   = 1 << 30
	segmentShare = 16
	// tellEvery is how often losses are told.
	tellEvery = time.Minute
	// trustAfter is for how long the clock must not have been set before anything
	// is removed for its age.
	trustAfter = time.Hour
)

// writer puts decisions from the ring into files.
type writer struct {
	j        *Journal
	dir      string
	hasher   atomic.Pointer[hasher] // nil unless addresses are hashed
	retry    time.Duration
	segment  int64 // size at which a segment is full
	started  atomic.Bool
	sleeping atomic.Bool
	wake     chan struct{}
	flushes  chan chan struct{}
	quit     chan struct{}
	done     sync.WaitGroup

	// Below is for the goroutine only.
	block   block
	pending []byte // a packed block that could not be written yet
	holds   int    // entries in it
	first   time.Time
	written uint64  // number of the last decision taken from the ring
	tokens  float64 // entries that may be taken now
	filled  time.Time
	enc     *zstd.Encoder
	lock    *os.File
	file    *os.File
	current *segment
	begun   time.Time // of the current segment
	tried   time.Time // when it last failed
	told    time.Time
	unTold  uint64 // losses not yet logged
	clock   clock

	mu     sync.Mutex // guards state
	state  Status
	failed bool
}

func newWriter(j *Journal, dir string) *writer {
	w := &writer{
		j: j, dir: dir, retry: retryEvery, segment: min(maxSegment, int64(j.cfg.MaxSize)/segmentShare),
		wake: make(chan struct{}, 1), flushes: make(chan chan struct{}), quit: make(chan struct{}), enc: newEncoder(),
	}
	w.block.reset()
	return w
}

func (w *writer) start() {
	w.clock.set(time.Now())
	w.tokens, w.filled = float64(w.j.cfg.MaxRate), time.Now()
	w.open()
	w.started.Store(true)
	w.done.Go(w.run)
}

func (w *writer) stop(ctx context.Context) {
	select {
	case <-w.quit:
		return
	default:
		close(w.quit)
	}
	ended := make(chan struct{})
	go func() {
		w.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done(): // a disk that hangs
		w.j.log.Warn("the journal could not be written to its end in time")
	}
}

// wakeUp tells the goroutine that there is something, if it sleeps.
func (w *writer) wakeUp() {
	if w.sleeping.Load() && w.sleeping.CompareAndSwap(true, false) {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// flush waits until what has come is written.
func (w *writer) flush(ctx context.Context) {
	if !w.started.Load() {
		return
	}
	done := make(chan struct{})
	select {
	case w.flushes <- done:
	case <-w.quit:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (w *writer) run() {
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		if w.lock == nil && time.Since(w.tried) >= w.retry {
			w.open()
		}
		some := w.drain(w.allowance(time.Now()))
		w.write(false)
		w.tell()
		wait := lookEvery
		if !some && w.block.entries == 0 && len(w.pending) == 0 {
			w.sleeping.Store(true)
			if w.j.next.Load() == w.written && len(w.j.answers) == 0 {
				wait = time.Minute // the clock is to be looked at
			}
		}
		tick.Reset(wait)
		select {
		case <-tick.C:
		case <-w.wake:
		case done := <-w.flushes:
			w.drain(len(w.j.ring))
			w.write(true)
			close(done)
		case <-w.quit:
			w.tried = time.Time{} // once more
			for range 2 {         // a block that could not be written was in the way
				w.drain(len(w.j.ring))
				w.write(true)
			}
			w.tell()
			w.close()
			return
		}
		w.sleeping.Store(false)
		w.expire(time.Now())
	}
}

// allowance returns how many entries may be taken now, by max_rate.
func (w *writer) allowance(now time.Time) int {
	rate := float64(w.j.cfg.MaxRate)
	w.tokens = min(w.tokens+now.Sub(w.filled).Seconds()*rate, rate)
	w.filled = now
	return int(max(w.tokens, 0))
}

// drain takes what has come from the ring, at most so much. While nothing can
// be written it stays there, and the oldest is overwritten.
func (w *writer) drain(most int) (some bool) {
	for most > 0 && w.room() {
		newest := w.j.next.Load()
		if w.written == newest {
			break
		}
		if most := uint64(len(w.j.ring)); newest-w.written > most {
			w.lost(newest - most - w.written)
			w.written = newest - most
		}
		s := &w.j.ring[w.written%uint64(len(w.j.ring))]
		s.mu.Lock()
		number := s.number
		if number == w.written+1 {
			w.add(s)
		}
		s.mu.Unlock()
		if number <= w.written {
			break // it is just being copied
		}
		if number > w.written+1 {
			w.lost(1) // overwritten
		}
		w.written++
		most--
		w.tokens--
		some = true
	}
	for most > 0 && w.room() {
		select {
		case a := <-w.j.answers:
			k := keys{kind: kindAnswer, time: a.Time.UnixNano()}
			w.put(&k, &a)
			most--
			w.tokens--
			some = true
			continue
		default:
		}
		break
	}
	return some
}

// room reports whether an entry can be taken.
func (w *writer) room() bool {
	if w.lock == nil {
		return false
	}
	if len(w.block.raw) >= blockSize {
		w.write(false)
	}
	return len(w.block.raw) < blockSize
}

// add puts a decision into the block. The slot is locked.
func (w *writer) add(s *slot) {
	var r Record
	s.fill(&r)
	rec := &r
	if h := w.hasher.Load(); h != nil {
		rec = h.conceal(rec)
	}
	k := keysOf(rec, s.ref)
	if text := w.put(&k, rec); text != nil && w.j.share != nil && k.action.Refuses() {
		w.j.share.put(s.ref, text)
	}
}

// put puts an entry into the block, and returns its JSON, which is valid until
// the next; nil when it is lost.
func (w *writer) put(k *keys, v any) []byte {
	if w.block.entries == 0 {
		w.first = time.Now()
	}
	text, err := w.block.add(k, v)
	if err != nil {
		w.lost(1)
		return nil
	}
	return text
}

func (w *writer) lost(n uint64) {
	w.unTold += n
	w.mu.Lock()
	w.state.Dropped += n
	w.mu.Unlock()
}

// tell logs losses, not too often.
func (w *writer) tell() {
	if w.unTold == 0 || since(w.told) < tellEvery && !w.told.IsZero() {
		return
	}
	w.j.log.Warn("decisions were not written to the journal: they came faster than it is written", zap.Uint64("lost", w.unTold))
	w.unTold, w.told = 0, time.Now()
}

// write writes the block when it is due.
func (w *writer) write(now bool) {
	due := now || len(w.block.raw) >= blockSize || w.block.entries > 0 && time.Since(w.first) >= flushEvery
	if len(w.pending) == 0 && (w.block.entries == 0 || !due) {
		return
	}
	if !w.tried.IsZero() && time.Since(w.tried) < w.retry {
		return
	}
	if len(w.pending) == 0 {
		w.holds = w.block.entries
		w.pending = w.block.pack(w.pending[:0], w.enc)
		w.block.reset()
	}
	err := w.append(w.pending)
	w.result(err)
	if err != nil {
		w.tried = time.Now()
		return
	}
	w.tried, w.pending = time.Time{}, w.pending[:0]
	w.mu.Lock()
	w.state.Written += uint64(w.holds)
	w.state.Flushed = time.Now()
	w.mu.Unlock()
	if w.block.entries > 0 {
		w.write(now)
	}
}

// result notes how the last attempt went, and logs when that has changed.
func (w *writer) result(err error) {
	w.mu.Lock()
	was := w.failed
	w.failed = err != nil
	if err != nil {
		w.state.Fault, w.state.FaultAt = err.Error(), time.Now()
	} else {
		w.state.Fault = ""
	}
	dropped := w.state.Dropped
	w.mu.Unlock()
	switch {
	case err != nil && !was:
		w.j.log.Error("the journal cannot be written; decisions go on, the newest stay in memory", zap.Error(err))
	case err == nil && was:
		w.j.log.Info("the journal is written again", zap.Uint64("lost_in_all", dropped))
	}
}

// open prepares the directory: it must not be another daemon's.
func (w *writer) open() {
	err := w.prepare()
	if err != nil {
		w.tried = time.Now()
	}
	w.result(err)
}

func (w *writer) prepare() error {
	if w.lock != nil {
		return nil
	}
	if err := os.Mkdir(w.dir, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(w.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("another daemon writes in %s: %w", w.dir, err), lock.Close())
	}
	if w.j.cfg.Addresses == Hashed {
		h, err := makeKey(w.dir)
		if err != nil {
			return errors.Join(err, lock.Close())
		}
		w.hasher.Store(h)
	}
	all, err := segments(w.dir)
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	w.lock = lock
	w.count(all)
	if len(all) > 0 {
		w.resume(all[len(all)-1])
	}
	return nil
}

// resume goes on with the last segment, without what was only half written.
func (w *writer) resume(s *segment) {
	w.current = s
	if s.size >= w.segment {
		return
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return // a new one is begun
	}
	var last place
	oldest := time.Now().UnixNano()
	got, err := blocks(s, f, s.size, func(p place) { last, oldest = p, min(oldest, p.oldest) })
	if err == nil && last.size > 0 && got.end == last.at+int64(last.size) {
		data := make([]byte, last.size)
		if _, err = f.ReadAt(data, last.at); err == nil && crc32.Checksum(data, castagnoli) != last.sum {
			got.end, got.torn = last.start, true // its length was written, and not all of it
		}
	}
	if err == nil && got.torn {
		err = f.Truncate(got.end)
		if err == nil && got.end == 0 {
			got.end = int64(len(segmentMagic))
			_, err = f.WriteAt([]byte(segmentMagic), 0)
		}
		if err == nil {
			w.j.log.Info("the journal's end was half written and is cut off", zap.String("file", s.path), zap.Int64("bytes", s.size-got.end))
			s.size = got.end
		}
	}
	if err != nil || got.end != s.size || got.end < int64(len(segmentMagic)) {
		_ = f.Close() // it is left as it is
		return
	}
	w.file, w.begun = f, timeOf(oldest)
}

// aged reports whether the current segment has taken entries for long enough:
// what is kept goes by whole segments.
func (w *writer) aged(now time.Time) bool {
	return w.file != nil && now.Sub(w.begun) > w.j.cfg.MaxAge.D()/segmentShare
}

// append writes a packed block at the end of the last segment.
func (w *writer) append(b []byte) error {
	if err := w.prepare(); err != nil {
		return err
	}
	if w.file != nil && (w.current.size+int64(len(b)) > w.segment || w.aged(time.Now())) {
		w.seal()
	}
	if err := w.makeRoom(int64(len(b) + len(segmentMagic))); err != nil {
		return err
	}
	if w.file == nil {
		if err := w.begin(); err != nil {
			return err
		}
	}
	if _, err := w.file.WriteAt(b, w.current.size); err != nil {
		// Nothing half written stays, or else this file is given up.
		if e := w.file.Truncate(w.current.size); e != nil {
			w.seal()
		}
		return err
	}
	w.current.size += int64(len(b))
	w.mu.Lock()
	w.state.Bytes += int64(len(b))
	w.mu.Unlock()
	return nil
}

// begin makes the next segment.
func (w *writer) begin() error {
	number := uint64(1)
	if w.current != nil {
		number = w.current.number + 1
	}
	path := filepath.Join(w.dir, nameOf(number))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(segmentMagic); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	w.file, w.begun = f, time.Now()
	w.current = &segment{path: path, number: number, size: int64(len(segmentMagic))}
	w.mu.Lock()
	w.state.Segments++
	w.state.Bytes += w.current.size
	w.mu.Unlock()
	return nil
}

// seal ends the current segment.
func (w *writer) seal() {
	if w.file == nil {
		return
	}
	// Best effort: what the disk does not take is told by the next write.
	_ = errors.Join(w.file.Sync(), w.file.Close())
	w.file = nil
}

func (w *writer) close() {
	w.seal()
	if w.lock != nil {
		_ = w.lock.Close() // with it goes the lock
		w.lock = nil
	}
	_ = w.enc.Close() // it holds nothing
}

func (w *writer) count(all []*segment) {
	var bytes int64
	for _, s := range all {
		bytes += s.size
	}
	w.mu.Lock()
	w.state.Segments, w.state.Bytes = len(all), bytes
	w.mu.Unlock()
}

// makeRoom removes the oldest segments until n bytes more fit.
func (w *writer) makeRoom(n int64) error {
	w.mu.Lock()
	fits := w.state.Bytes+n <= int64(w.j.cfg.MaxSize)
	w.mu.Unlock()
	if fits {
		return nil
	}
	all, err := segments(w.dir)
	if err != nil {
		return err
	}
	w.count(all)
	var total int64
	for _, s := range all {
		total += s.size
	}
	for _, s := range all {
		if total+n <= int64(w.j.cfg.MaxSize) || w.file != nil && s.number == w.current.number {
			break
		}
		if err := os.Remove(s.path); err != nil {
			return err
		}
		total -= s.size
		w.removed(s)
	}
	return nil
}

func (w *writer) removed(s *segment) {
	w.mu.Lock()
	w.state.Segments--
	w.state.Bytes -= s.size
	w.mu.Unlock()
}

// clock tells whether the time of day can be believed. Set far ahead by
// mistake, it would make all that is kept look old.
type clock struct {
	offset  time.Duration // of the time of day, against the time that passes
	started time.Time
	steady  time.Time // since when it has not been set
	looked  time.Time
}

func (c *clock) set(now time.Time) {
	c.started, c.steady = now, now
	c.offset = 0
}

// trusted looks at the clock, and reports whether it has not been set for long
// enough.
func (c *clock) trusted(now time.Time) bool {
	passed := now.Sub(c.started) // by the monotonic clock
	told := now.Round(0).Sub(c.started.Round(0))
	if offset := told - passed; (offset - c.offset).Abs() > time.Minute {
		c.offset, c.steady = offset, now
	}
	return now.Sub(c.steady) >= trustAfter
}

// expireEvery is how often the age of segments is looked at.
const expireEvery = 10 * time.Minute

// expire removes segments that are too old, the first ones first.
func (w *writer) expire(now time.Time) {
	if !w.clock.trusted(now) || w.lock == nil || !w.clock.looked.IsZero() && now.Sub(w.clock.looked) < expireEvery {
		return
	}
	w.clock.looked = now
	if w.aged(now) {
		w.seal()
	}
	all, err := segments(w.dir)
	if err != nil {
		return // it is told when it is written
	}
	if w.file != nil && len(all) > 0 {
		all = all[:len(all)-1] // the current one
	}
	oldest := now.Add(-w.j.cfg.MaxAge.D()).UnixNano()
	future := now.Add(24 * time.Hour).UnixNano()
	// One whose time is still to come was written with a wrong clock, and of one
	// that cannot be read there is no time: they are as old as the one after.
	n := 0
	for i, s := range all {
		newest, ok := newestOf(s)
		switch {
		case ok && newest < oldest:
			n = i + 1
			continue
		case !ok || newest > future:
			continue
		}
		break
	}
	for _, s := range all[:n] {
		if err := os.Remove(s.path); err != nil {
			return
		}
		w.removed(s)
	}
}

// newestOf returns the newest time in a segment, false when it holds nothing
// that can be read.
func newestOf(s *segment) (newest int64, ok bool) {
	f, err := os.Open(s.path)
	if err != nil {
		return 1<<63 - 1, true // it stays
	}
	defer f.Close() //nolint:errcheck // only read
	_, err = blocks(s, f, s.size, func(p place) {
		if !ok || p.newest > newest {
			newest, ok = p.newest, true
		}
	})
	if err != nil {
		return 1<<63 - 1, true
	}
	return newest, ok
}
