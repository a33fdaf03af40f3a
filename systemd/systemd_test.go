// Package systemd_test holds the shipped units to what systemd itself says of
// them.
package systemd_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"postern/admin"
	"postern/internal/listen"
	"postern/policyd"
	"postern/store"
)

// maxExposure is the most that `systemd-analyze security` may say; 10 is a
// service without any sandbox.
const maxExposure = 1.2

const installed = "/usr/local/bin/postern"

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tool returns the path of a program of systemd.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v; make deps installs it", err)
		}
		t.Skipf("%v; make deps installs it", err)
	}
	return path
}

// units copies the units to a directory where they name a program that exists,
// and returns their paths.
func units(t *testing.T) (service, socket string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"postern.service", "postern.socket", "postern-milter.socket", "postern-lookup.socket"} {
		text := read(t, name)
		if name == "postern.service" && !strings.Contains(text, "ExecStart="+installed+" serve\n") {
			t.Fatalf("%s does not start %s", name, installed)
		}
		text = strings.ReplaceAll(text, installed, self)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "postern.service"), filepath.Join(dir, "postern.socket")
}

func TestUnitsAreSound(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	service, socket := units(t)
	out, err := exec.Command(analyze, "verify", "--man=no", service, socket,
		filepath.Join(filepath.Dir(socket), "postern-milter.socket"), filepath.Join(filepath.Dir(socket), "postern-lookup.socket")).CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze verify: %v\n%s", err, out)
	}
	// It also complains of what it only ignores.
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "postern") {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
}

func TestExposure(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	service, _ := units(t)
	out, err := exec.Command(analyze, "security", "--no-pager", "--offline=yes",
		"--threshold="+strconv.Itoa(int(maxExposure*10)), service).CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	m := regexp.MustCompile(`Overall exposure level for postern\.service: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security says no level:\n%s", out)
	}
	if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > maxExposure {
		t.Errorf("exposure is %s (%v), want at most %v\n%s", m[1], err, maxExposure, out)
	}
}

// values returns what a unit sets a key to, in order.
func values(unit, key string) []string {
	var out []string
	for line := range strings.Lines(unit) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			out = append(out, v)
		}
	}
	return out
}

// The units provide the directories that the configuration's defaults name.
func TestDirectoriesOfDefaults(t *testing.T) {
	service := read(t, "postern.service")
	for _, tt := range []struct{ key, root, path string }{
		{"StateDirectory", "/var/lib", store.DefaultConfig().Path},
		{"RuntimeDirectory", "/run", strings.TrimPrefix(admin.DefaultConfig().Listen, "unix:")},
		{"RuntimeDirectory", "/run", policyd.DefaultConfig().Listen[0].Path},
	} {
		v := values(service, tt.key)
		if len(v) != 1 || filepath.Join(tt.root, v[0]) != filepath.Dir(tt.path) {
			t.Errorf("%s=%v does not hold %s", tt.key, v, tt.path)
		}
	}
}

// What the socket unit listens on can be written in policy.listen, the tcp
// address is the default's, and the socket's directory is made for Postfix.
func TestSockets(t *testing.T) {
	socket := read(t, "postern.socket")
	streams := values(socket, "ListenStream")
	if len(streams) != 2 {
		t.Fatalf("ListenStream=%v, want a unix and a tcp socket", streams)
	}
	var unix, tcp listen.Address
	if err := unix.UnmarshalText([]byte("unix:" + streams[0])); err != nil {
		t.Error(err)
	}
	if err := tcp.UnmarshalText([]byte("tcp:" + streams[1])); err != nil {
		t.Error(err)
	}
	if want := policyd.DefaultConfig().Listen[1].Target(); tcp.Target() != want {
		t.Errorf("the socket unit listens on %s, policy.listen on %s", tcp.Target(), want)
	}
	if got := values(socket, "SocketMode"); len(got) != 1 || got[0] != "0660" {
		t.Errorf("SocketMode=%v, want 0660", got)
	}
	if got := values(socket, "SocketGroup"); len(got) != 1 || got[0] != "postfix" {
		t.Errorf("SocketGroup=%v, want postfix", got)
	}
	for _, name := range []string{"milter", "lookup"} {
		other := read(t, "postern-"+name+".socket")
		if got := values(other, "ListenStream"); len(got) != 1 || got[0] != filepath.Join(filepath.Dir(unix.Path), name+".sock") {
			t.Errorf("%s: ListenStream=%v", name, got)
		}
		for _, line := range []string{"Service=postern.service", "SocketUser=postern", "SocketGroup=postfix", "SocketMode=0660", "Backlog=1024"} {
			if !strings.Contains(other, "\n"+line+"\n") {
				t.Errorf("postern-%s.socket has no line %q", name, line)
			}
		}
	}
	dir := "d " + filepath.Dir(unix.Path) + " 2750 postern postfix "
	if !strings.Contains(read(t, "postern.tmpfiles"), "\n"+dir) {
		t.Errorf("postern.tmpfiles has no line %q", dir)
	}
}

// The drop-in that the milter's manual gives adds a socket and keeps those
// of the policy door.
func TestMilterDropIn(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	service, socket := units(t)
	dir := filepath.Dir(socket)
	socket = filepath.Join(dir, "postern-milter.socket")
	drop := socket + ".d"
	if err := os.Mkdir(drop, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(drop, "milter.conf"), []byte("[Socket]\nListenStream=\nListenStream=127.0.0.1:10041\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", service, socket).CombinedOutput()
	if err != nil || strings.Contains(string(out), "postern") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// systemd has read it: a key that it does not know there is told of.
	if err := os.WriteFile(filepath.Join(drop, "milter.conf"), []byte("[Socket]\nListenStraem=/x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command(analyze, "verify", "--man=no", service, socket).CombinedOutput(); !strings.Contains(string(out), "ListenStraem") {
		t.Errorf("the drop-in is not read:\n%s", out)
	}
}

// A socket that systemd holds and that no address names would never be
// answered: Postfix would wait for its time limit at each request.
func TestShippedConfigurationTakesTheSockets(t *testing.T) {
	shipped, err := os.ReadFile("../configs/postern.toml")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no configs/postern.toml to compare with")
	} else if err != nil {
		t.Fatal(err)
	}
	for i, stream := range values(read(t, "postern.socket"), "ListenStream") {
		want := []string{"unix:", "tcp:"}[i] + stream
		if !regexp.MustCompile(`(?m)^[^#]*"` + regexp.QuoteMeta(want) + `[",]`).Match(shipped) {
			t.Errorf("configs/postern.toml does not listen on %s", want)
		}
	}
}

// systemd-sysusers and systemd-tmpfiles take the shipped files.
func TestUserAndDirectory(t *testing.T) {
	sysusers := tool(t, "systemd-sysusers")
	tmpfiles := tool(t, "systemd-tmpfiles")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	root := t.TempDir()
	for _, dir := range []string{"etc", "var/spool/postfix"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\npostfix:x:105:112::/var/spool/postfix:/usr/sbin/nologin\n")
	write("etc/group", "root:x:0:\npostfix:x:112:\n")
	for _, c := range [][]string{
		{sysusers, "--root=" + root, abs(t, "postern.sysusers")},
		{tmpfiles, "--root=" + root, "--create", abs(t, "postern.tmpfiles")},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^postern:x:[1-9][0-9]*:[1-9][0-9]*:.*:/usr/sbin/nologin$`).Match(passwd) {
		t.Errorf("no user postern without a shell:\n%s", passwd)
	}
	st, err := os.Stat(filepath.Join(root, "var/spool/postfix/postern"))
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o750 || st.Mode()&os.ModeSetgid == 0 {
		t.Errorf("the directory of the policy socket has mode %v, want drwxr-s---", st.Mode())
	}
}

func abs(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
