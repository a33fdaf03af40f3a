// Package confine has the kernel hold this process to files that are named
// beforehand, for good (landlock(7)). What it cannot reach then, nobody can who
// gets the process to do as they like.
//
// Files that are open already stay so. Sockets and connections are not
// concerned, also not those of other programs that have a path.
package confine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	"github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Files are directories, and all that is below them.
type Files struct {
	Read  []string
	Write []string // and read
}

// Supported reports whether the kernel can do it.
func Supported() bool {
	abi, err := syscall.LandlockGetABIVersion()
	return err == nil && abi >= 1
}

// system is what a program in Go reads for itself: names, certificates, time
// zones, its own state, limits of the kernel.
var system = []string{
	"/etc", "/usr/share", "/usr/lib/ssl", "/usr/local/share", "/proc", "/sys/fs/cgroup", "/sys/kernel/mm", "/sys/devices/system/cpu",
	"/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager",
}

// To holds the whole process, all its threads and its children to the files and
// to what a program in Go needs for itself, among it /etc for reading and the
// directory for temporary files. What does not exist is left out. It takes away
// from children the privileges of set-user-ID programs (PR_SET_NO_NEW_PRIVS).
// On a kernel that knows only a part of it, that part is done.
func To(f Files) error {
	err := landlock.V5.BestEffort().RestrictPaths(
		landlock.RODirs(append(slices.Clone(f.Read), system...)...).IgnoreIfMissing(),
		landlock.RWDirs(append(slices.Clone(f.Write), os.TempDir())...).IgnoreIfMissing(),
		landlock.RWFiles("/dev/null").IgnoreIfMissing(),
	)
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return nil
}

// Lacks returns what of other files is not below these, in order, without those
// that a program in Go needs anyway.
func (f *Files) Lacks(other Files) []string {
	var out []string
	for _, path := range other.Read {
		if !below(path, f.Read, f.Write, system) {
			out = append(out, path)
		}
	}
	for _, path := range other.Write {
		if !below(path, f.Write, []string{os.TempDir()}) {
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func below(path string, sets ...[]string) bool {
	for _, dirs := range sets {
		for _, dir := range dirs {
			if path == dir || dir == "/" || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") {
				return true
			}
		}
	}
	return false
}

// Directories returns where files are: the directory of each path and, where
// that or the path is a symbolic link, the directory to which it leads. A
// directory stands for itself. One that does not exist is left out or, when it
// may be made, stands for the nearest above it that does.
func Directories(made bool, paths ...string) []string {
	var out []string
	add := func(path string) {
		if st, err := os.Stat(path); err != nil || !st.IsDir() {
			path = filepath.Dir(path)
		}
		for {
			if st, err := os.Stat(path); err == nil && st.IsDir() || path == "/" {
				break
			}
			if !made {
				return
			}
			path = filepath.Dir(path)
		}
		if path != "/" { // no file is there, and all would be allowed
			out = append(out, path)
		}
	}
	for _, path := range paths {
		path = absolute(path)
		add(path)
		if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
			add(real)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
