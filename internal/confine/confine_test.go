package confine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const childEnv = "CONFINE_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(confined(dir))
	}
	os.Exit(m.Run())
}

// confined is the process that is held: once, for good.
func confined(dir string) int {
	ok := true
	want := func(what string, err error, denied bool) {
		if got := errors.Is(err, fs.ErrPermission); got != denied || !denied && err != nil {
			println(what, "denied:", denied, "but:", err == nil)
			if err != nil {
				println(err.Error())
			}
			ok = false
		}
	}
	in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	early, err := os.Open(in("other", "file"))
	want("before", err, false)
	f := Files{Read: []string{in("read")}, Write: []string{in("write"), in("missing")}}
	if err := To(f); err != nil {
		println(err.Error())
		return 1
	}
	// On every thread, those that are there and those that come.
	var wg sync.WaitGroup
	var readable atomic.Bool
	for range 32 {
		wg.Go(func() {
			runtime.LockOSThread()
			if _, err := os.ReadFile(in("other", "file")); !errors.Is(err, fs.ErrPermission) {
				readable.Store(true)
			}
		})
	}
	wg.Wait()
	if readable.Load() {
		println("a thread can read it")
		ok = false
	}
	read := func(names ...string) error { _, err := os.ReadFile(in(names...)); return err }
	write := func(names ...string) error { return os.WriteFile(in(names...), []byte("new"), 0o600) }
	want("reading what may be read", read("read", "file"), false)
	want("a link in it that leads out", read("read", "link"), true)
	want("writing what may be read", write("read", "file"), true)
	want("making a file there", write("read", "new"), true)
	want("removing a file there", os.Remove(in("read", "file")), true)
	want("writing what may be written", write("write", "file"), false)
	want("renaming there", os.Rename(in("write", "file"), in("write", "file2")), false)
	want("a way up", read("read", "..", "other", "file"), true)
	_, err = os.ReadDir(in("other"))
	want("listing another directory", err, true)
	_, err = early.Read(make([]byte, 1))
	want("what was open before", err, false)
	_, err = os.ReadFile("/proc/self/stat")
	want("its own state", err, false)
	want("running a program", exec.Command(in("other", "program")).Run(), true)
	if !ok {
		return 1
	}
	return 0
}

func TestConfinedProcess(t *testing.T) {
	if !Supported() {
		t.Skip("the kernel has no Landlock")
	}
	dir := t.TempDir()
	for _, name := range []string{"read", "write", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../other/file", filepath.Join(dir, "read", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other", "program"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	// The directory for temporary files may always be used.
	cmd.Env = append(os.Environ(), childEnv+"="+dir, "TMPDIR="+filepath.Join(dir, "write"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestDirectories(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(real, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real/file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		want []string
	}{
		{filepath.Join(real, "file"), []string{real}},
		{filepath.Join(real, "none"), []string{real}},
		{filepath.Join(real, "none", "at", "all"), []string{real}},
		{real, []string{real}},
		{filepath.Join(dir, "link"), []string{dir, real}},
		{"/none-there", nil},
	} {
		if got := Directories(true, tt.path); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", strings.TrimPrefix(tt.path, dir), got, tt.want)
		}
	}
}

// What is only read and is not there needs no place.
func TestMissingDirectories(t *testing.T) {
	dir := t.TempDir()
	if got := Directories(false, filepath.Join(dir, "none", "file"), filepath.Join(dir, "file")); !slices.Equal(got, []string{dir}) {
		t.Errorf("%v, want %s", got, dir)
	}
}

func TestLacks(t *testing.T) {
	f := Files{Read: []string{"/srv/lists"}, Write: []string{"/var/lib/x"}}
	for _, tt := range []struct {
		read, write string
		lacks       bool
	}{
		{"/srv/lists", "", false}, {"/srv/lists/below", "", false}, {"/srv/listsmore", "", true}, {"/srv", "", true},
		{"/var/lib/x", "", false}, {"/etc/anything", "", false},
		{"", "/var/lib/x/y", false}, {"", "/srv/lists", true}, {"", "/etc", true},
	} {
		var other Files
		if tt.read != "" {
			other.Read = []string{tt.read}
		}
		if tt.write != "" {
			other.Write = []string{tt.write}
		}
		if got := f.Lacks(other); (len(got) > 0) != tt.lacks {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
