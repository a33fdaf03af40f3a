package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
)

// list is one provider's list, kept right.
type list struct {
	cfg     ListConfig
	all     *Config
	domains []string
	source  string
	guard   GuardConfig
	rules   []*rule
	skip    []string
	limits  Limits
	exports []ExportConfig

	res     Resolver
	shared  Shared // nil without one
	node    string // our name in leases
	log     *zap.Logger
	metrics listMetrics

	snap atomic.Pointer[snapshot] // nil until there is a list

	busy chan struct{} // holds one while the list is being changed

	mu        sync.Mutex // guards what follows; not held across I/O
	doc       document   // what was learned from DNS; Serial 0: nothing yet
	files     []Entry    // from files
	tracks    []filestamp.Tracker
	fileFault string
	faultAt   time.Time
	next      time.Time // when the records are read again
	failures  int       // in a row
	lastError string
	errorAt   time.Time
	told      string // id of the refused update that was logged as an error
	exportErr string
	seen      uint64 // the highest serial of another node's document

	wake chan struct{} // holds one: next has changed
}

// errBusy is for a caller whose context ended while another refresh went on.
var errBusy = errors.New("another refresh of the list is under way")

// take makes this the only change of the list under way; release undoes it.
func (l *list) take(ctx context.Context) error {
	select {
	case l.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("provider: list %s: %w", l.cfg.Name, errBusy)
	}
}

func (l *list) release() { <-l.busy }

// statePath is the file of the last good list.
func (l *list) statePath() string { return filepath.Join(l.all.StateDir, l.cfg.Name+".json") }

// load reads the last good list and the files. Faults of files are returned;
// a state that cannot be used is logged, and does not count.
func (l *list) load(now time.Time) conf.Faults {
	entries, faults := l.readFiles()
	if len(faults) > 0 {
		return faults
	}
	l.files = entries
	if len(l.domains) > 0 {
		l.loadState(now)
	}
	l.install()
	return nil
}

func (l *list) readFiles() ([]Entry, conf.Faults) {
	l.mu.Lock()
	l.tracks = slices.Grow(l.tracks, len(l.cfg.Files))[:len(l.cfg.Files)]
	for i, path := range l.cfg.Files {
		l.tracks[i].Begin(path)
	}
	l.mu.Unlock()
	return readFiles(l.cfg.Files)
}

func (l *list) loadState(now time.Time) {
	text, err := readBounded(l.statePath(), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var d *document
	if err == nil {
		d, err = decode(text, l.cfg.Name, l.source)
	}
	switch {
	case errors.Is(err, errOther):
		l.log.Info("the last good list is of other records and is not used", zap.String("file", l.statePath()))
		return
	case err != nil:
		l.log.Error("the last good list cannot be used; the list is empty until it has been read from DNS",
			zap.String("file", l.statePath()), zap.Error(err))
		return
	}
	if d.Serial > 0 {
		if why := l.guard.absolute(prefixesOf(d.Entries), l.cfg.AllowReserved); len(why) > 0 && d.How != ByHand {
			l.log.Error("the last good list is beyond the guards of the configuration and is not used",
				zap.String("file", l.statePath()), zap.Strings("reasons", why))
			return
		}
	}
	l.doc = *d
	l.next = l.due(d.Checked, now)
}

// save writes the state.
func (l *list) save() {
	l.mu.Lock()
	doc := l.doc
	l.mu.Unlock()
	text, err := doc.encode()
	if err == nil {
		if err = os.MkdirAll(l.all.StateDir, 0o750); err == nil {
			err = writeFile(l.statePath(), text, 0o640, -1, -1)
		}
	}
	if err != nil {
		l.log.Error("the list could not be kept: a restart without DNS would not have it", zap.String("file", l.statePath()), zap.Error(err))
		l.failed(err)
	}
}

func (l *list) failed(err error) {
	l.mu.Lock()
	l.lastError, l.errorAt = err.Error(), time.Now()
	l.mu.Unlock()
}

// install puts what is known in force.
func (l *list) install() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.doc.Serial == 0 && len(l.files) == 0 {
		l.snap.Store(nil)
		return
	}
	entries := slices.Concat(l.doc.Entries, l.files)
	slices.SortStableFunc(entries, byPrefix)
	entries = slices.CompactFunc(entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
	carry := l.snap.Load()
	for i := range entries {
		if entries[i].Since.IsZero() { // of a file
			one := entries[i : i+1]
			carrySince(one, carry, time.Now())
		}
	}
	l.snap.Store(newSnapshot(entries))
}

// reload reads the files. With any fault, the last good ones stay. asked is set
// when the administrator wants to know at once.
func (l *list) reload(ctx context.Context, asked bool) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.release()
	entries, faults := l.readFiles()
	why := ""
	switch {
	case len(faults) > 0:
		why = faultsText(faults)
	case len(entries) == 0 && len(l.domains) == 0:
		why = "it is empty"
	case len(entries) > 0:
		why = strings.Join(l.guard.absolute(prefixesOf(entries), l.cfg.AllowReserved), "; ")
	}
	l.mu.Lock()
	tell := asked
	for i := range l.tracks {
		if why == "" {
			l.tracks[i].Good()
		} else if l.tracks[i].Bad() {
			tell = true
		}
	}
	if why != "" && !tell {
		l.mu.Unlock()
		return errors.New(why) // a file may be half written
	}
	l.fileFault, l.faultAt = why, time.Now()
	was := len(l.files)
	if why == "" {
		l.files = entries
	}
	l.mu.Unlock()
	l.metrics.faulty(why != "")
	if why != "" {
		l.metrics.count(resultRefused)
		l.log.Error("the files of a list were not taken, what they held before stays in force", zap.String("reason", why))
		return errors.New(why)
	}
	l.metrics.count(resultChanged)
	l.log.Info("files of a list read again", zap.Int("networks", len(entries)), zap.Int("before", was))
	l.install()
	l.show()
	l.export()
	return nil
}
