package console

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/internal/page"
)

// Entry is a line of the audit log.
type Entry struct {
	Time   time.Time           `json:"time"`
	User   string              `json:"user"`
	Role   page.Role           `json:"role,omitzero"`
	From   string              `json:"from"` // address
	Page   string              `json:"page"`
	Action string              `json:"action"`
	Values map[string][]string `json:"values,omitempty"` // what was given
	Result string              `json:"result,omitempty"`
	Before string              `json:"before,omitempty"`
	After  string              `json:"after,omitempty"`
	Error  string              `json:"error,omitempty"` // why nothing came of it
}

// audit is the audit log. When it has grown to maxAudit it gets ".1" behind its
// name, in place of what had that.
type audit struct {
	path string
	mu   sync.Mutex
}

const (
	maxAudit = 32 << 20
	// maxAuditValue is the most bytes of one value that are written.
	maxAuditValue = 4 << 10
)

// open opens the log, to be written to by the function it returns, which closes
// it. Who changes something opens it before.
func (a *audit) open() (write func(*Entry) error, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if st, err := os.Stat(a.path); err == nil && st.Size() > maxAudit {
		if err := os.Rename(a.path, a.path+".1"); err != nil {
			return nil, fmt.Errorf("console: audit log: %w", err)
		}
	}
	f, err := os.OpenFile(a.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("console: audit log: %w", err)
	}
	return func(e *Entry) error {
		for _, values := range e.Values {
			for i, v := range values {
				if len(v) > maxAuditValue {
					values[i] = strings.ToValidUTF8(v[:maxAuditValue], "") + "…"
				}
			}
		}
		line, err := json.Marshal(e)
		if err == nil {
			_, err = f.Write(append(line, '\n')) // one write: lines do not mix
		}
		return errors.Join(err, f.Close())
	}, nil
}

// last returns the newest entries that want lets through, at most n, the newest
// first. It reads no more than the end of the file.
func (a *audit) last(n int, want func(*Entry) bool) ([]Entry, error) {
	f, err := os.Open(a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("console: audit log: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	const most = 8 << 20
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("console: audit log: %w", err)
	}
	skip := st.Size() > most
	if skip {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return nil, fmt.Errorf("console: audit log: %w", err)
		}
	}
	var out []Entry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if skip {
			skip = false // it may be the end of one
			continue
		}
		var e Entry
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e) == nil && want(&e) {
			if out = append(out, e); len(out) >= 2*n+1000 {
				out = slices.Delete(out, 0, len(out)-n)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("console: audit log: %w", err)
	}
	out = out[max(0, len(out)-n):]
	slices.Reverse(out)
	return out, nil
}
