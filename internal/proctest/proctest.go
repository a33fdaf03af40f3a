// Package proctest changes the state of peer processes in tests. A signal is not
// a state: kill(2) returns before the threads of a process have stopped. What
// is here returns when the kernel shows the state (proc(5)).
package proctest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds each wait; nothing is timed by it.
const patience = 60 * time.Second

// Freeze stops a process without closing anything (SIGSTOP), and returns when
// all its threads have stopped.
func Freeze(tb testing.TB, pid int) {
	tb.Helper()
	Signal(tb, pid, syscall.SIGSTOP)
	wait(tb, pid, "stopped", func(state byte) bool { return state == 'T' || state == 't' })
}

// Thaw ends Freeze, and returns when no thread is stopped any more.
func Thaw(tb testing.TB, pid int) {
	tb.Helper()
	Signal(tb, pid, syscall.SIGCONT)
	wait(tb, pid, "running", func(state byte) bool { return state != 'T' && state != 't' })
}

// Signal sends a signal.
func Signal(tb testing.TB, pid int, sig syscall.Signal) {
	tb.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		tb.Fatalf("%v to process %d: %v", sig, pid, err)
	}
}

// Gone waits until no process has the number any more, or only one that nobody
// has waited for.
func Gone(tb testing.TB, pid int) {
	tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		states, err := states(pid)
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.Trim(string(states), "ZX") == "" {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("process %d does not end: %s, %v", pid, states, err)
		}
	}
}

func wait(tb testing.TB, pid int, what string, ok func(state byte) bool) {
	tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		all, err := states(pid)
		if err != nil {
			tb.Fatalf("process %d is not %s: %v", pid, what, err)
		}
		right := true
		for _, state := range all {
			right = right && ok(state)
		}
		if right {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("process %d is not %s: its threads are %s", pid, what, all)
		}
	}
}

// states returns the state of each thread of a process, a letter each.
func states(pid int) ([]byte, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, task := range tasks {
		stat, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "task", task.Name(), "stat"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		// The name before the state may hold anything.
		_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		if !ok || rest == "" {
			return nil, fmt.Errorf("unexpected %q", stat)
		}
		out = append(out, rest[0])
	}
	if len(out) == 0 {
		return nil, fs.ErrNotExist
	}
	return out, nil
}
