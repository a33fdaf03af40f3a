// Package bolt is the embedded store: one bbolt file behind an overlay that
// writes all changes of a second in one transaction.
//
// A crash loses at most the changes since the last flush. A file that cannot
// be used is moved aside and a new one begun: a cold start is an
// inconvenience, a gateway that does not start is an outage.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	bolterr "go.etcd.io/bbolt/errors"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/store"
	"postern/store/overlay"
)

// schema is the version of the file's content. A file of a newer one is
// refused rather than misread.
const schema = 3

var (
	bucketMeta = []byte("meta")
	bucketGrey = []byte("greylist")
	bucketWait = []byte("waiting") // those who wait, by the number of their first contact
	keySchema  = []byte("schema")
	keyEntries = []byte("entries")
)

// Tuning. The overlay's cache holds the senders of a busy quarter of an hour;
// a backlog of maxDirty means that the disk has been gone for minutes.
const (
	cacheSlots = 64 << 10
	maxDirty   = 500_000
	sweepEvery = 5 * time.Second
	sweepKeys  = 4000
	listBatch  = 1000
	// mapped is how much address space is set aside for the file. A file that
	// outgrows it has to be mapped again, with a copy of all that is being
	// written; where addresses are short that is the lesser evil.
	mapped = 1 << 30 * (strconv.IntSize / 64)
)

// Store is an open file. It is safe for concurrent use.
type Store struct {
	path    string
	db      *bbolt.DB
	engine  *overlay.Engine
	values  *overlay.Values
	log     *zap.Logger
	metrics *metrics

	flushing    sync.Mutex // one flush at a time
	mu          sync.Mutex // guards status and cursor
	status      store.Status
	cursor      []byte            // where the sweeper goes on
	valueCursor map[string]string // the same, by space

	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
	end  error
}

var _ store.Store = (*Store)(nil)

// Open opens or makes the file of cfg and starts the flusher and the sweeper,
// which Close ends. The file is for one process at a time.
func Open(cfg store.Config, log *zap.Logger, reg prometheus.Registerer) (*Store, error) {
	log = log.Named("store")
	db, entries, err := openFile(cfg.Path, log)
	if err != nil {
		return nil, err
	}
	s := &Store{path: cfg.Path, db: db, log: log, metrics: newMetrics(reg), stop: make(chan struct{})}
	s.status = store.Status{Kind: store.Embedded, Where: cfg.Path, Healthy: true}
	s.engine = overlay.New(overlay.Options{
		MaxEntries: cfg.MaxEntries, MaxWaiting: cfg.MaxWaiting, Backing: s, MaxDirty: maxDirty, CacheSize: cacheSlots, Entries: entries,
	})
	if err := errors.Join(s.openValues(cfg.MaxEntries), s.openWaiting()); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.metrics.observe(s.engine, reg)
	s.done.Go(func() { s.run(cfg.FlushInterval.D()) })
	if entries > 0 || s.fillFilter() {
		s.done.Go(s.keepFilter)
	}
	return s, nil
}

// openFile opens the file, moving a damaged one aside.
func openFile(path string, log *zap.Logger) (*bbolt.DB, int, error) {
	db, n, err := tryOpen(path)
	switch {
	case err == nil:
		return db, n, nil
	case errors.Is(err, bolterr.ErrTimeout):
		return nil, 0, fmt.Errorf("store: %s is in use by another process", path)
	case errors.Is(err, store.ErrNewer), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return nil, 0, fmt.Errorf("store: %s: %w", path, err)
	}
	if st, e := os.Stat(path); e != nil || !st.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("store: %s: %w", path, err)
	}
	aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000"))
	if e := os.Rename(path, aside); e != nil {
		return nil, 0, fmt.Errorf("store: %s: %w", path, errors.Join(err, e))
	}
	log.Error("the state file is damaged: moved aside, starting with an empty one",
		zap.String("path", path), zap.String("moved_to", aside), zap.Error(err))
	if db, n, err = tryOpen(path); err != nil {
		return nil, 0, fmt.Errorf("store: %s: %w", path, err)
	}
	return db, n, nil
}

func tryOpen(path string) (db *bbolt.DB, entries int, err error) {
	defer func() {
		if cause := recover(); cause != nil { // bbolt panics on some damaged pages
			err = fmt.Errorf("damaged: %v", cause)
		}
		if err != nil && db != nil {
			_ = db.Close() // it is of no use
		}
	}()
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, 0, err
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: time.Second, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mapped,
	})
	if err != nil {
		return nil, 0, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		v := meta.Get(keySchema)
		if v != nil && (len(v) != 1 || v[0] > schema) {
			return fmt.Errorf("%w of postern (schema %x, this one knows %d)", store.ErrNewer, v, schema)
		}
		if v == nil || v[0] < schema { // what earlier ones held besides expires
			if err := meta.Put(keySchema, []byte{schema}); err != nil {
				return err
			}
		}
		if v := meta.Get(keyEntries); len(v) == 8 {
			entries = int(binary.BigEndian.Uint64(v))
		}
		_, err = tx.CreateBucketIfNotExists(bucketGrey)
		if err == nil {
			_, err = tx.CreateBucketIfNotExists(bucketWait)
		}
		return err
	})
	return db, entries, err
}

// recordSize is the length of a stored record: expiry, then First, Last,
// Attempts and Passes, or what a credit has in their places. A credit has when
// a pass was last counted behind it.
const recordSize = 8 + 8 + 8 + 4 + 4

func encode(b []byte, r *overlay.Record) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(r.Expires))
	b = binary.BigEndian.AppendUint64(b, uint64(r.A))
	b = binary.BigEndian.AppendUint64(b, uint64(r.B))
	b = binary.BigEndian.AppendUint32(b, r.X)
	b = binary.BigEndian.AppendUint32(b, r.Y)
	if r.C != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(r.C))
	}
	return b
}

func decode(v []byte) (r overlay.Record, ok bool) {
	if len(v) < recordSize {
		return r, false
	}
	r = overlay.Record{
		Expires: int64(binary.BigEndian.Uint64(v)),
		A:       int64(binary.BigEndian.Uint64(v[8:])), B: int64(binary.BigEndian.Uint64(v[16:])),
		X: binary.BigEndian.Uint32(v[24:]), Y: binary.BigEndian.Uint32(v[28:]),
	}
	if len(v) == recordSize+8 {
		r.C = int64(binary.BigEndian.Uint64(v[recordSize:]))
	}
	return r, true
}

// guard turns a panic of bbolt over a damaged page into an error.
func guard(err *error) {
	if cause := recover(); cause != nil {
		*err = fmt.Errorf("damaged file: %v", cause)
	}
}

// Load implements overlay.Backing. It reads the mapped file under a shard's
// lock, which a read of a page from disk may hold up; nothing else here waits.
func (s *Store) Load(key []byte) (rec overlay.Record, found bool, err error) {
	defer guard(&err)
	tx, err := s.db.Begin(false)
	if err != nil {
		return rec, false, err
	}
	defer tx.Rollback() //nolint:errcheck // a read transaction
	if v := tx.Bucket(bucketGrey).Get(key); v != nil {
		rec, found = decode(v)
	}
	return rec, found, nil
}

func (s *Store) run(interval time.Duration) {
	flush, sweep := time.NewTicker(interval), time.NewTicker(sweepEvery)
	defer flush.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-s.stop:
			s.end = errors.Join(s.flush(), s.flushValues())
			return
		case <-flush.C:
			_ = s.flush() // told by note
			_ = s.flushValues()
		case now := <-sweep.C:
			s.sweep(now)
			s.engine.SweepRoom(now)
			s.sweepValues(now)
		}
	}
}

// keepFilter has the engine know which keys are in the file: all are read once
// after the start, and again when many have come.
func (s *Store) keepFilter() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for !s.engine.FilterFull() || s.fillFilter() {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
	}
}

var errStopping = errors.New("stopping")

// fillFilter reports whether it could. Without it, new keys cost a look into
// the file.
func (s *Store) fillFilter() bool {
	err := s.engine.FillFilter(s.keys)
	if err != nil && !errors.Is(err, errStopping) {
		s.log.Warn("cannot read the keys of the state file", zap.String("path", s.path), zap.Error(err))
	}
	return err == nil
}

// keys calls add for each key in the file.
func (s *Store) keys(add func(key []byte)) error {
	defer s.release()
	var from []byte
	for n := 1; ; n++ {
		if n%releaseEvery == 0 {
			s.release()
		}
		next, err := s.scan(from, sweepKeys, func(key []byte, _ overlay.Record) bool {
			add(key)
			return true
		})
		if from = next; err != nil || from == nil {
			return err
		}
		select {
		case <-s.stop:
			return errStopping
		default:
		}
	}
}

// releaseEvery is after how many times sweepKeys keys the mapped pages of the
// file are let go: some 15 MB of them.
const releaseEvery = 25

// release takes the pages of the file that have been read out of the process's
// memory. Those in use come back at once from the system's.
func (s *Store) release() {
	_ = s.db.View(func(tx *bbolt.Tx) error { // in a transaction the mapping stays where it is
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, s.db.Info().Data, uintptr(tx.Size()), syscall.MADV_DONTNEED)
		return nil
	})
}

// flush writes all changes that wait.
func (s *Store) flush() (err error) {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	start := time.Now()
	// First those who wait: who passes meanwhile is in the records then.
	waiting := s.engine.TakeWaiting()
	changes := s.engine.TakeDirty()
	if changes.Len() == 0 && len(waiting) == 0 {
		s.engine.Written()
		return nil
	}
	err = s.write(changes, waiting)
	s.engine.WroteWaiting(waiting, err == nil)
	if err != nil {
		s.engine.Failed()
	} else {
		s.engine.Written()
	}
	s.note(err, time.Since(start))
	return err
}

func (s *Store) write(changes overlay.Changes, waiting []overlay.WaitingChange) (err error) {
	defer guard(&err)
	return s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketGrey)
		values := make([]byte, 0, changes.Len()*(recordSize+8))
		for i := range changes.Len() {
			c := changes.At(i)
			if c.Gone {
				if err := b.Delete(c.Key); err != nil {
					return err
				}
				continue
			}
			at := len(values)
			values = encode(values, &c.Rec)
			if err := b.Put(c.Key, values[at:len(values):len(values)]); err != nil {
				return err
			}
		}
		if err := writeWaiting(tx, waiting); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put(keyEntries, binary.BigEndian.AppendUint64(nil, uint64(max(0, s.engine.Entries()))))
	})
}

// note keeps the outcome of a flush for Status, and logs when it changes.
func (s *Store) note(err error, took time.Duration) {
	s.metrics.flushed(err, took)
	s.mu.Lock()
	was := s.status.Healthy
	s.status.Healthy = err == nil
	if err == nil {
		s.status.Flushed, s.status.FlushTook = time.Now(), took
	} else {
		s.status.LastError, s.status.ErrorAt = err.Error(), time.Now()
	}
	s.mu.Unlock()
	switch {
	case err != nil && was:
		s.log.Error("cannot write the state file; keeping changes in memory", zap.String("path", s.path), zap.Error(err))
	case err == nil && !was:
		s.log.Info("the state file can be written again", zap.String("path", s.path))
	}
}

// sweep marks expired records for deletion, some thousand keys a call.
func (s *Store) sweep(now time.Time) {
	s.mu.Lock()
	from := s.cursor
	s.mu.Unlock()
	ms := now.UnixMilli()
	var over, old []string
	expired := func(r overlay.Record) bool { return r.Expires < ms }
	next, err := s.scan(from, sweepKeys, func(key []byte, rec overlay.Record) bool {
		switch {
		case !expired(rec):
		case key[0] == store.OldClientKey || key[0] == store.OldPairKey:
			old = append(old, string(key))
		default:
			over = append(over, string(key))
		}
		return true
	})
	if err == nil {
		err = s.removeOld(old)
	}
	for _, key := range over {
		if _, e := s.engine.Delete(key, expired); e != nil {
			err = errors.Join(err, e)
			break
		}
	}
	if err != nil {
		s.log.Warn("sweep of the state file failed", zap.Error(err))
	}
	s.mu.Lock()
	s.cursor = next
	s.mu.Unlock()
}

// removeOld takes records of earlier versions out of the file: the engine does
// not know them.
func (s *Store) removeOld(keys []string) (err error) {
	if len(keys) == 0 {
		return nil
	}
	defer guard(&err)
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, key := range keys {
			if err := tx.Bucket(bucketGrey).Delete([]byte(key)); err != nil {
				return err
			}
		}
		return nil
	})
}

// scan calls yield for at most n records from a key on and returns the key at
// which to go on, nil at the end. yield must not keep key.
func (s *Store) scan(from []byte, n int, yield func(key []byte, rec overlay.Record) bool) (next []byte, err error) {
	defer guard(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketGrey).Cursor()
		k, v := c.First()
		if from != nil {
			k, v = c.Seek(from)
		}
		for ; k != nil; k, v = c.Next() {
			if n == 0 {
				next = slices.Clone(k)
				return nil
			}
			n--
			if rec, ok := decode(v); ok && !yield(k, rec) {
				return nil
			}
		}
		return nil
	})
	return next, err
}

// each calls yield for every record, as it is now. It flushes first, so that
// the file knows all keys, and never holds a transaction while yielding.
func (s *Store) each(ctx context.Context, yield func(key string, rec overlay.Record) bool) error {
	if err := s.flush(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	type pair struct {
		key string
		rec overlay.Record
	}
	batch := make([]pair, 0, listBatch)
	var from []byte
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		batch = batch[:0]
		next, err := s.scan(from, listBatch, func(k []byte, rec overlay.Record) bool {
			batch = append(batch, pair{string(k), rec})
			return true
		})
		if err != nil {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		for _, p := range batch {
			if now, ok := s.engine.Current(p.key, p.rec); ok && !yield(p.key, now) {
				return nil
			}
		}
		if from = next; from == nil {
			return nil
		}
	}
}

// TouchGreylist implements greylist.Store.
func (s *Store) TouchGreylist(_ context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	out, err := s.engine.Touch(c)
	if err != nil {
		s.metrics.errors.Inc()
	}
	return out, err
}

// ListGreylist implements greylist.AdminStore.
func (s *Store) ListGreylist(ctx context.Context, f greylist.Filter, now time.Time, yield func(greylist.Entry) bool) error {
	more := true
	pick := store.Picker(&f, yield)
	err := s.each(ctx, func(key string, rec overlay.Record) bool {
		if e, live := overlay.Entry(key, rec, now); live {
			more = pick(e)
		}
		return more
	})
	if err != nil || !more {
		return err
	}
	return s.eachWaiting(ctx, now, pick)
}

// ForgetGreylist implements greylist.AdminStore. What it removes is gone from
// disk when it returns.
func (s *Store) ForgetGreylist(ctx context.Context, f greylist.Filter) (int, error) {
	n := 0
	var failed error
	err := s.each(ctx, func(key string, _ overlay.Record) bool {
		if e, ok := store.SplitKey(key); !ok || !store.Matches(&f, &e) {
			return true
		}
		var gone bool
		if gone, failed = s.engine.Delete(key, func(overlay.Record) bool { return true }); gone {
			n++
		}
		return failed == nil
	})
	if err == nil && failed == nil {
		err = s.eachWaiting(ctx, time.Time{}, func(e greylist.Entry) bool {
			if store.Matches(&f, &e) && s.engine.ForgetWaiting(&e) {
				n++
			}
			return true
		})
	}
	return n, errors.Join(err, failed, s.flush())
}

// CountGreylist implements greylist.AdminStore.
func (s *Store) CountGreylist(ctx context.Context, now time.Time) (greylist.Counts, error) {
	var n greylist.Counts
	err := s.ListGreylist(ctx, greylist.Filter{}, now, func(e greylist.Entry) bool {
		n.Add(&e)
		return true
	})
	return n, err
}

// MergeGreylist implements greylist.AdminStore.
func (s *Store) MergeGreylist(ctx context.Context, entries []greylist.Entry, r *greylist.Rule, now time.Time) (out greylist.Merged, err error) {
	for i := range entries {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		one, err := s.engine.Merge(&entries[i], r, now)
		if err != nil {
			return out, err
		}
		out.Add(one)
	}
	return out, nil
}

// Status implements store.Store.
func (s *Store) Status() store.Status {
	s.mu.Lock()
	st := s.status
	s.mu.Unlock()
	st.Entries, st.Pending = s.engine.Entries(), s.engine.Pending()+s.values.Pending()
	st.Room = s.engine.Room(time.Now())
	return st
}

// Ping implements store.Store.
func (s *Store) Ping(context.Context) error {
	if st := s.Status(); !st.Healthy {
		return fmt.Errorf("%w: %s", store.ErrUnavailable, st.LastError)
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close(context.Context) error {
	s.once.Do(func() {
		close(s.stop)
		s.done.Wait()
		if err := s.db.Close(); err != nil {
			s.end = errors.Join(s.end, err)
		}
	})
	return s.end
}

// Compact writes the live content of the file at path to a new file and puts
// it in its place: bbolt files never shrink by themselves. No process may
// have the file open. It returns the sizes before and after, in bytes.
func Compact(path string) (before, after int64, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, 0, fmt.Errorf("store: %w", err)
	}
	src, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if errors.Is(err, bolterr.ErrTimeout) {
		return 0, 0, fmt.Errorf("store: %s is in use; stop the daemon first", path)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("store: %s: %w", path, err)
	}
	defer src.Close() //nolint:errcheck // it was only read
	next := path + ".compact"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fmt.Errorf("store: %w", err)
	}
	dst, err := bbolt.Open(next, st.Mode().Perm(), &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return 0, 0, fmt.Errorf("store: %s: %w", next, err)
	}
	err = bbolt.Compact(dst, src, 16<<20)
	err = errors.Join(err, dst.Close())
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		_ = os.Remove(next) // the old file is untouched
		return 0, 0, fmt.Errorf("store: compact %s: %w", path, err)
	}
	if st2, err := os.Stat(path); err == nil {
		after = st2.Size()
	}
	return st.Size(), after, nil
}
