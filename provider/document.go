package provider

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// document is what is kept of a list, on disk and in the shared store.
type document struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	// Source tells which records the list is made of. A document of others is
	// not used.
	Source string `json:"source"`
	// Serial counts the times that the list was read well, over all nodes.
	Serial  uint64    `json:"serial"`
	Checked time.Time `json:"checked"` // last good reading
	Changed time.Time `json:"changed"` // last change of the list
	How     How       `json:"how"`     // it came into force

	TTL      time.Duration `json:"ttl"`
	Entries  []Entry       `json:"entries"` // sorted
	Records  []RecordText  `json:"records,omitempty"`
	Problems []Problem     `json:"problems,omitempty"`
	History  []Change      `json:"history,omitempty"` // the newest last

	Pending *Pending `json:"pending,omitempty"` // only on disk
}

const (
	documentVersion = 1
	// maxDocument is far above what MaxLookups and Networks let come together.
	maxDocument = 64 << 20
)

// How says in what way a list came into force.
type How string

// The ways.
const (
	ByRefresh How = "refresh"  // read from DNS, within the guards
	ByHand    How = "accepted" // at an operator's word
)

// Change is one change of a list.
type Change struct {
	Time time.Time `json:"time"`
	How  How       `json:"how"`
	ID   string    `json:"id"` // of the list that came into force
	// Added and Removed are the networks, at most 1000 of each; the numbers
	// tell how many they were.
	Diff
	AddedCount   int `json:"added_count"`
	RemovedCount int `json:"removed_count"`
}

// maxDiff is how many networks of each kind a change keeps.
const maxDiff = 1000

func newChange(now time.Time, how How, id string, d Diff) Change {
	c := Change{Time: now, How: how, ID: id, Diff: d, AddedCount: len(d.Added), RemovedCount: len(d.Removed)}
	c.Added = c.Added[:min(len(c.Added), maxDiff)]
	c.Removed = c.Removed[:min(len(c.Removed), maxDiff)]
	return c
}

// Pending is an update that was not taken.
type Pending struct {
	ID       string        `json:"id"` // to accept it by
	Time     time.Time     `json:"time"`
	Reasons  []string      `json:"reasons"`
	TTL      time.Duration `json:"ttl"`
	Entries  []Entry       `json:"entries"`
	Records  []RecordText  `json:"records,omitempty"`
	Problems []Problem     `json:"problems,omitempty"`
}

// encode writes the document.
func (d *document) encode() ([]byte, error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("provider: list %s: %w", d.Name, err)
	}
	return append(b, '\n'), nil
}

// errOther marks a document of another list or of other records.
var errOther = errors.New("made of other records")

// decode reads a document and holds it to everything that is relied on.
func decode(text []byte, name, source string) (*document, error) {
	d := new(document)
	in := json.NewDecoder(bytes.NewReader(text))
	if err := in.Decode(d); err != nil {
		return nil, err
	}
	switch {
	case d.Version != documentVersion:
		return nil, fmt.Errorf("version %d, want %d", d.Version, documentVersion)
	case d.Name != name || d.Source != source:
		return nil, errOther
	}
	if err := checkEntries(d.Entries); err != nil {
		return nil, err
	}
	if d.Pending != nil {
		if err := checkEntries(d.Pending.Entries); err != nil {
			return nil, fmt.Errorf("pending: %w", err)
		}
	}
	return d, nil
}

// checkEntries refuses what this package would not have written, and sorts.
func checkEntries(entries []Entry) error {
	for i := range entries {
		p := entries[i].Prefix
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("%q is no network", p)
		}
	}
	slices.SortFunc(entries, byPrefix)
	return nil
}

// writeFile puts a file in the place of another in one step. The mode is that
// of the new file; uid and gid of -1 are left alone.
func writeFile(path string, text []byte, mode os.FileMode, uid, gid int) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if uid >= 0 || gid >= 0 {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	_ = f.Close() // synced and in its place: there is nothing left to fail
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil //nolint:nilerr // the file is there; only its survival of a power cut is not sure
	}
	_ = dir.Sync() // as above
	_ = dir.Close()
	return nil
}

// sourceOf names the records that a list is made of.
func sourceOf(domains []string) string { return strings.Join(domains, " ") }
