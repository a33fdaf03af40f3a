package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/confine"
)

// What the configuration names at the start can be read, and what is beside it;
// a reload that names something elsewhere says that it takes a restart.
func TestLandlock(t *testing.T) {
	t.Parallel()
	if !confine.Supported() {
		t.Skip("the kernel has no Landlock")
	}
	const config = base + "[access]\ndeny = [%q]\n"
	elsewhere := shortDir(t)
	d := newDaemon(t, "")
	lists := filepath.Join(d.dir, "lists")
	if err := os.Mkdir(lists, 0o755); err != nil {
		t.Fatal(err)
	}
	list := func(dir, name, entry string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(entry+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d.configure(fmt.Sprintf(config, list(lists, "a.list", "10.0.0.1")))
	d.start()
	expect(t, "log", d.log.String(), "landlock is on")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "status", string(status), "NoNewPrivs:\t1")

	d.configure(fmt.Sprintf(config, list(lists, "b.list", "10.0.0.2")))
	d.run("reload")
	expect(t, "a new file beside an old one", d.run("access", "list"), "10.0.0.2")

	d.configure(fmt.Sprintf(config, list(elsewhere, "c.list", "10.0.0.3")))
	out, err := d.try("reload")
	if err == nil {
		t.Errorf("a file elsewhere is read: %s", out)
	}
	expect(t, "a file elsewhere", out, elsewhere, "a restart is needed")
	expect(t, "status", d.run("status"), "a restart is needed")
	expect(t, "the old list", d.run("access", "list"), "10.0.0.2")

	// A place to write is no other.
	d.configure(fmt.Sprintf(config, filepath.Join(lists, "a.list")) + fmt.Sprintf("[policy]\nlisten = [\"unix:%s/policy.sock\"]\n", elsewhere))
	if out, err := d.try("reload"); err == nil || !strings.Contains(out, "a restart is needed") {
		t.Errorf("a socket elsewhere: %v, %s", err, out)
	}

	d.stop()
	d.configure(fmt.Sprintf(config, filepath.Join(elsewhere, "c.list")))
	d.start()
	expect(t, "after a restart", d.run("access", "list"), "10.0.0.3")

	// Without it, everything that the user may read.
	d.stop()
	d.configure("landlock = false\n" + fmt.Sprintf(config, filepath.Join(lists, "a.list")))
	d.start()
	d.configure("landlock = false\n" + fmt.Sprintf(config, filepath.Join(elsewhere, "c.list")))
	d.run("reload")
	expect(t, "without landlock", d.run("access", "list"), "10.0.0.3")
	d.configure(fmt.Sprintf(config, filepath.Join(elsewhere, "c.list")))
	d.run("reload")
	expect(t, "what waits", d.run("status"), "landlock")
}
