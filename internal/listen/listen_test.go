package listen

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func parse(t *testing.T, s string) *Address {
	t.Helper()
	var a Address
	if err := a.UnmarshalText([]byte(s)); err != nil {
		t.Fatal(err)
	}
	return &a
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		in, network, target, chain string
		mode                       os.FileMode
	}{
		{"unix:/run/a.sock", "unix", "/run/a.sock", "", 0o666},
		{"unix:/run//x/../a.sock,mode=0660,group=postfix,user=root,chain=relay", "unix", "/run/a.sock", "relay", 0o660},
		{"tcp:127.0.0.1:10040", "tcp", "127.0.0.1:10040", "", 0o666},
		{"inet:localhost:25,chain=x", "tcp", "localhost:25", "x", 0o666},
		{"tcp:[::1]:10040", "tcp", "[::1]:10040", "", 0o666},
		{"tcp::10040", "tcp", ":10040", "", 0o666},
	} {
		a := parse(t, tt.in)
		if a.Network != tt.network || a.Target() != tt.target || a.Chain != tt.chain || a.Mode != tt.mode {
			t.Errorf("%s: %+v", tt.in, a)
		}
		if text, _ := a.MarshalText(); string(text) != tt.in {
			t.Errorf("%s is written as %s", tt.in, text)
		}
	}
	for in, want := range map[string]string{
		"":                                  "want unix:/PATH or tcp:HOST:PORT",
		"/run/a.sock":                       "want unix:/PATH or tcp:HOST:PORT",
		"unix:run/a.sock":                   "must be absolute",
		"unix:/" + strings.Repeat("x", 120): "at most",
		"tcp:127.0.0.1":                     "want tcp:HOST:PORT",
		"tcp:::1:25":                        "want tcp:HOST:PORT",
		"tcp:127.0.0.1:smtp":                "is not a number",
		"tcp:127.0.0.1:70000":               "is not a number",
		"tcp:127.0.0.1:25,mode=0600":        "for unix sockets only",
		"unix:/a,mode=rw":                   "octal file mode",
		"unix:/a,mode":                      "not name=value",
		"unix:/a,colour=red":                "unknown option",
	} {
		var a Address
		if err := a.UnmarshalText([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	a := parse(t, "unix:"+path+",mode=0640,group="+groupName(t))
	l, err := Open(a, nil)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o640 || st.Mode()&os.ModeSocket == 0 {
		t.Errorf("socket %v, %v", st.Mode(), err)
	}
	if l.Addr().String() != path || Name(l) != "unix:"+path {
		t.Errorf("address %v, name %s", l.Addr(), Name(l))
	}
	if _, err := Open(a, nil); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second listener: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// groupName is a group that this process may give files to, as a number.
func groupName(t *testing.T) string {
	t.Helper()
	return map[bool]string{true: "0", false: "100"}[os.Getgid() == 0]
}

func TestWhatIsAtThePath(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ul.SetUnlinkOnClose(false)
	if err := ul.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Open(parse(t, "unix:"+stale), nil)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	// Another process takes the name while ours still listens.
	if err := os.Remove(stale); err != nil {
		t.Fatal(err)
	}
	other, err := Open(parse(t, "unix:"+stale), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err != nil {
		t.Error("closing removed the socket of another listener")
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(parse(t, "unix:"+file), nil); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: %v", err)
	}
	if _, err := Open(parse(t, "unix:"+dir+"/no/s"), nil); err == nil || !strings.Contains(err.Error(), "there is no directory "+dir+"/no") {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Open(parse(t, "unix:"+dir+"/g,group=no-such-group"), nil); err == nil || !strings.Contains(err.Error(), `no group "no-such-group"`) {
		t.Errorf("no group: %v", err)
	}
}

func TestInheritedSocketsAreFoundByTheirAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	u, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := &Inherited{free: []named{{"policy", u}, {"tcp", c}}}
	a := parse(t, "unix:"+path)
	l, err := Open(a, in)
	if err != nil || l != u {
		t.Fatalf("got %v, %v", l, err)
	}
	if got := in.Unused(); len(got) != 1 || !strings.HasPrefix(got[0], "tcp (") {
		t.Errorf("unused: %v", got)
	}
	l2, err := Open(parse(t, "tcp:"+c.Addr().String()), in)
	if err != nil || l2 != c {
		t.Fatalf("got %v, %v", l2, err)
	}
	for _, l := range []net.Listener{l, l2} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("an inherited socket was removed; it belongs to systemd")
	}
	var none *Inherited
	if none.Unused() != nil || none.take(a) != nil {
		t.Error("nothing inherited is not nothing")
	}
}

// failing gives the errors in turn, then a connection.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) == 0 {
		c, _ := net.Pipe()
		return c, nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, err
}

func TestAcceptRidesOutWhatPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waited []error
		start := time.Now()
		c, err := Accept(&failing{errs: []error{syscall.EMFILE, syscall.ECONNABORTED, os.NewSyscallError("accept4", syscall.ENFILE)}},
			func(err error) { waited = append(waited, err) })
		if err != nil || c == nil || len(waited) != 3 {
			t.Errorf("%v, %v, waited for %v", c, err, waited)
		}
		if took := time.Since(start); took != 35*time.Millisecond {
			t.Errorf("waited %v, want 5+10+20 ms", took)
		}
		for _, final := range []error{net.ErrClosed, errors.New("odd")} {
			if _, err := Accept(&failing{errs: []error{final}}, func(error) {}); !errors.Is(err, final) {
				t.Errorf("got %v, want %v", err, final)
			}
		}
	})
}
