package chaos

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// state is the directory of the daemon's state.
func (w *world) state() string { return filepath.Join(w.dir, "state") }

// command runs a program, which must succeed.
func (w *world) command(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		w.t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}

// mount mounts something at a directory; the test is skipped where it cannot.
func (w *world) mount(dir string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			w.t.Fatalf("mount: %v\n%s", err, out)
		}
		w.t.Skipf("mount: %v\n%s", err, out)
	}
	w.t.Cleanup(func() {
		_ = exec.Command("fsfreeze", "-u", dir).Run() // it may not be frozen
		_ = exec.Command("umount", "-l", dir).Run()   // it may be gone
	})
}

// ownDisk gives the state a file system of its own, in a file.
func (w *world) ownDisk(dir string) {
	w.t.Helper()
	disk := filepath.Join(w.dir, "disk")
	f, err := os.Create(disk)
	if err == nil {
		err = errors.Join(f.Truncate(64<<20), f.Close())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		w.t.Skipf("mkfs.ext4: %v\n%s", err, out)
	}
	w.mount(dir, "-o", "loop", disk)
}

// fsck repairs the disk of the state.
func (w *world) fsck() {
	w.t.Helper()
	out, err := exec.Command("fsck.ext4", "-p", "-f", filepath.Join(w.dir, "disk")).CombinedOutput()
	// 1 says that there was something to repair (fsck(8)).
	if ee := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &ee) && ee.ExitCode() == 1) {
		w.t.Errorf("fsck: %v\n%s", err, out)
	}
}

// fill fills the disk of the state, or empties it again.
func (w *world) fill(full bool) {
	w.t.Helper()
	ballast := filepath.Join(w.state(), "ballast")
	if !full {
		if err := os.Remove(ballast); err != nil {
			w.t.Error(err)
		}
		return
	}
	f, err := os.Create(ballast)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer f.Close() //nolint:errcheck // it is full
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		w.t.Errorf("filling the disk: %v", err)
	}
}

// zeros is endless.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// freeze has every write to the disk of the state wait (fsfreeze(8)), or go on.
func (w *world) freeze(on bool) {
	w.t.Helper()
	w.command("fsfreeze", map[bool]string{true: "-f", false: "-u"}[on], w.state())
}

// flushed waits until the embedded store has written what it learned by now.
func (w *world) flushed() {
	w.t.Helper()
	now := time.Now()
	eventually(w.t, "the state is on the disk", func() bool {
		st, ok := w.d.store()
		return ok && st.Pending == 0 && st.Flushed.After(now)
	})
}

// remembers kills the daemon when it has written its state: what passed before
// still does afterwards.
func remembers(w *world) {
	w.t.Helper()
	// Something new, so that there is something to write.
	a := &doorAsker{socket: w.d.socket()}
	defer a.close()
	fresh := someone(newcomer)
	if v, text := a.ask(fresh); v != delayed {
		w.t.Errorf("a newcomer is %s: %s", v, text)
	}
	w.flushed()
	w.d.kill()
	w.d.start()
	for _, c := range w.known {
		if v, text := a.ask(c); v != passed {
			w.t.Errorf("after a restart a known contact is %s: %s", v, text)
		}
	}
	eventually(w.t, "the newcomer of before the restart passes", func() bool { v, _ := a.ask(fresh); return v == passed })
}

// crowd opens idle connections to the policy door.
func (w *world) crowd(n int) {
	w.t.Helper()
	for range n {
		c, err := net.Dial("unix", w.d.socket())
		if err != nil {
			w.t.Error(err)
			return
		}
		w.idle = append(w.idle, c)
	}
	eventually(w.t, "no file descriptor is left", func() bool {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.d.pid()))
		return err == nil && len(files) >= w.d.limit-1
	})
}

func (w *world) uncrowd() {
	for _, c := range w.idle {
		_ = c.Close() // it may be closed
	}
	w.idle = nil
}

// flood asks for newcomers as fast as it can.
func (w *world) flood(d time.Duration) {
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			a := &doorAsker{socket: w.d.socket()}
			defer a.close()
			for time.Now().Before(end) {
				w.judge(a, someone(newcomer), nothing)
			}
		})
	}
	wg.Wait()
}

// upgrade puts another binary in place of the daemon's, and restarts it.
func (w *world) upgrade(binary string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "postern")
	w.command("cp", binary, path+".new")
	if err := os.Rename(path+".new", path); err != nil {
		w.t.Error(err)
	}
	w.d.stop()
	w.d.path = path
	w.d.start()
	b, err := w.d.call("GET", "/v1/status")
	if next := strings.Contains(string(b), `"version":"next"`); err != nil || next != strings.HasSuffix(binary, ".new") {
		w.t.Errorf("the version after the upgrade: %s, %v", b, err)
	}
}
