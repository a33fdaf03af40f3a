package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// A program in Go asks the kernel for the time without any library that could
// be replaced, and a time namespace does not move the time of day. So a daemon
// is built whose package time adds to what it shows what is in the first eight
// bytes of a file, which is mapped: the clock is stepped by writing there.
const stepped = `
func Now() Time {
	t := now0()
	if clock == nil {
		return t
	}
	out := Unix(t.unixSec(), int64(t.nsec())+*clock)
	if t.wall&hasMonotonic != 0 {
		out.setMono(t.ext)
	}
	return out
}

var clock = mapClock()

func mapClock() *int64 {
	name, ok := syscall.Getenv("CHAOS_CLOCK")
	if !ok {
		return nil
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}

func now0() Time {`

// steppable is a daemon with such a clock.
var steppable = sync.OnceValues(func() (string, error) {
	dir, err := built()
	if err != nil {
		return "", err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	b, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	text := string(b)
	for _, r := range [][2]string{
		{"\nfunc Now() Time {", stepped},
		{"\t_ \"unsafe\" // for go:linkname\n", "\t\"syscall\"\n\t\"unsafe\"\n"},
	} {
		if strings.Count(text, r[0]) != 1 {
			return "", fmt.Errorf("%s has no %q", source, r[0])
		}
		text = strings.Replace(text, r[0], r[1], 1)
	}
	changed := filepath.Join(dir, "time.go")
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: changed}})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, overlay, 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "postern.clock")
	cmd := exec.Command("go", "build", "-o", path, "-overlay", name, "postern/cmd/postern")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

// wind makes the file of a daemon's clock.
func wind(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, 8), 0o600); err != nil {
		t.Fatal(err)
	}
}

// step sets the daemon's clock: d more than the time is.
func (w *world) step(d time.Duration) {
	w.t.Helper()
	f, err := os.OpenFile(w.clock(), os.O_WRONLY, 0)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer f.Close()                                                       //nolint:errcheck // nothing is buffered
	if _, err := f.Write((*[8]byte)(unsafe.Pointer(&d))[:]); err != nil { // as it is read
		w.t.Error(err)
	}
}

func (w *world) clock() string { return filepath.Join(w.dir, "clock") }
