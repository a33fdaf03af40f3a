package postfix

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// backups is the directory, below Postfix's own, that holds what was.
const backups = "postern-backup"

// kept are the files of which a copy is kept.
var kept = []string{"main.cf", "master.cf"}

// manifest says what a change has left, so that an undo knows whether somebody
// has changed more since.
type manifest struct {
	Time  time.Time         `json:"time"`
	After map[string]string `json:"after"` // sums of the files, by name
}

const manifestFile = "postern.json"

// Backup copies main.cf and master.cf into a directory of their own, and returns
// it.
func (s *Setup) Backup(now time.Time) (string, error) {
	dir := filepath.Join(s.Dir, backups, now.Format("20060102-150405"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range kept {
		if err := copyFile(filepath.Join(s.Dir, name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return dir, nil
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	// Whole or not at all: Postfix may read it at any time.
	part := to + ".part"
	if err := os.WriteFile(part, text, st.Mode().Perm()); err != nil {
		return err
	}
	if err := os.Chmod(part, st.Mode().Perm()); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// Apply makes the changes with postconf, which it backs up before, checks the
// outcome and has a running Postfix read it. When it fails, all is as before.
func (s *Setup) Apply(ctx context.Context, changes []Change, now time.Time) (backup string, err error) {
	if backup, err = s.Backup(now); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.restore(backup))
		}
	}()
	args := []string{"-e"}
	for i := range changes {
		args = append(args, changes[i].assignment())
	}
	if err := s.run(ctx, "postconf", args...); err != nil {
		return backup, err
	}
	if err := s.run(ctx, "postfix", "check"); err != nil {
		return backup, fmt.Errorf("postfix check finds fault, nothing is changed: %w", err)
	}
	if err := s.note(backup, now); err != nil {
		return backup, err
	}
	return backup, s.Reload(ctx)
}

// note writes down what the change has left.
func (s *Setup) note(backup string, now time.Time) error {
	m := manifest{Time: now, After: map[string]string{}}
	for _, name := range kept {
		m.After[name] = sum(filepath.Join(s.Dir, name))
	}
	text, err := json.MarshalIndent(&m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(backup, manifestFile), append(text, '\n'), 0o644)
}

// sum is that of a file, "" when it cannot be read.
func sum(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:])
}

func (s *Setup) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, program(name), append([]string{"-c", s.Dir}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args[:1], " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Running reports whether the instance runs.
func (s *Setup) Running(ctx context.Context) bool { return s.run(ctx, "postfix", "status") == nil }

// Reload has a running instance read its configuration.
func (s *Setup) Reload(ctx context.Context) error {
	if !s.Running(ctx) {
		return nil
	}
	return s.run(ctx, "postfix", "reload")
}

// restore puts the files of a backup back.
func (s *Setup) restore(backup string) error {
	for _, name := range kept {
		if err := copyFile(filepath.Join(backup, name), filepath.Join(s.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Newest returns the newest backup that has not been taken back, "" when there
// is none.
func (s *Setup) Newest() (string, error) {
	all, err := os.ReadDir(filepath.Join(s.Dir, backups))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(b.Name(), a.Name()) })
	for _, e := range all {
		if dir := filepath.Join(s.Dir, backups, e.Name()); sum(filepath.Join(dir, manifestFile)) != "" {
			return dir, nil
		}
	}
	return "", nil
}

// Changed returns the files that somebody has changed since a backup's change.
func (s *Setup) Changed(backup string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(backup, manifestFile))
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(backup, manifestFile), err)
	}
	var out []string
	for _, name := range kept {
		if m.After[name] != sum(filepath.Join(s.Dir, name)) {
			out = append(out, name)
		}
	}
	return out, nil
}

// Undo puts back what was before the change that a backup is of. The backup is
// not used again.
func (s *Setup) Undo(ctx context.Context, backup string) error {
	if err := s.restore(backup); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(backup, manifestFile), filepath.Join(backup, "undone.json")); err != nil {
		return err
	}
	return s.Reload(ctx)
}
