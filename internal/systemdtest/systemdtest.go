// Package systemdtest is as much of systemd as the restart of a service needs:
// it keeps open files that the service gives it (sd_notify(3): FDSTORE,
// FDSTOREREMOVE, BARRIER).
package systemdtest

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Manager keeps files. Its methods are safe for concurrent use.
type Manager struct {
	socket string
	mu     sync.Mutex
	kept   []*os.File // each named as it was given
	errs   []error
}

// Start listens on a unix socket, until the test ends.
func Start(tb testing.TB, socket string) *Manager {
	tb.Helper()
	s := &Manager{socket: socket}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() }) // the end
	go s.serve(l)
	return s
}

// Env returns what a service finds in its environment.
func (s *Manager) Env() []string {
	return []string{"NOTIFY_SOCKET=" + s.socket, "FDSTORE=1000"}
}

// Err returns what has gone wrong.
func (s *Manager) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

// Copies returns copies of the files for a process that starts, which are the
// caller's to close.
func (s *Manager) Copies() []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*os.File
	for _, f := range s.kept {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			s.errs = append(s.errs, err)
			continue
		}
		syscall.CloseOnExec(fd)
		out = append(out, os.NewFile(uintptr(fd), f.Name()))
	}
	return out
}

// Holds returns how many files are kept under a name, or under any if it is
// empty.
func (s *Manager) Holds(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.kept {
		if name == "" || f.Name() == name {
			n++
		}
	}
	return n
}

func (s *Manager) serve(l *net.UnixConn) {
	text, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, m, _, _, err := l.ReadMsgUnix(text, oob)
		if err != nil {
			return
		}
		var files []*os.File
		messages, err := syscall.ParseSocketControlMessage(oob[:m])
		for _, message := range messages {
			fds, bad := syscall.ParseUnixRights(&message)
			err = errors.Join(err, bad)
			for _, fd := range fds {
				syscall.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), field(string(text[:n]), "FDNAME")))
			}
		}
		s.take(string(text[:n]), files, err)
	}
}

func (s *Manager) take(state string, files []*os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.errs = append(s.errs, err)
	}
	switch {
	case field(state, "FDSTORE") == "1":
		s.kept = append(s.kept, files...)
	case field(state, "FDSTOREREMOVE") == "1":
		s.kept = slices.DeleteFunc(s.kept, func(f *os.File) bool {
			gone := f.Name() == field(state, "FDNAME")
			if gone {
				_ = f.Close() // the daemon has a copy
			}
			return gone
		})
	default: // READY and the like; a barrier's file is closed
		for _, f := range files {
			_ = f.Close() // so it is told
		}
	}
}

func field(state, name string) string {
	for line := range strings.Lines(state) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return v
		}
	}
	return ""
}
