package listen

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// Inherited is the set of sockets that systemd handed to this process.
// The zero value is none.
type Inherited struct {
	mu   sync.Mutex
	free []named
	kept map[string][]*os.File
}

type named struct {
	name string
	l    net.Listener
}

// FromSystemd takes over the sockets of sd_listen_fds(3). It can be called
// once in the life of a process.
func FromSystemd() (*Inherited, error) {
	in := &Inherited{kept: make(map[string][]*os.File)}
	for _, f := range activation.Files(true) {
		if !listens(f) {
			in.kept[f.Name()] = append(in.kept[f.Name()], f)
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("listen: sockets from systemd: %w", err)
		}
		_ = f.Close() // the listener has a copy
		in.free = append(in.free, named{f.Name(), l})
	}
	return in, nil
}

// listens reports whether f is a listening socket.
func listens(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	on := 0
	err = raw.Control(func(fd uintptr) {
		on, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN) // 0 where it is no socket
	})
	return err == nil && on != 0
}

// Kept returns what came under a name and is no listening socket: files that an
// earlier process has given to systemd. They are the caller's from then on.
func (in *Inherited) Kept(name string) []*os.File {
	if in == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	files := in.kept[name]
	delete(in.kept, name)
	return files
}

// take returns the inherited socket that is bound to a, nil when there is none.
func (in *Inherited) take(a *Address) net.Listener {
	if in == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for i, n := range in.free {
		if a.Is(n.l.Addr()) {
			in.free = append(in.free[:i], in.free[i+1:]...)
			return n.l
		}
	}
	return nil
}

// Is reports whether a socket that is bound to b is one of this address.
func (a *Address) Is(b net.Addr) bool {
	switch b := b.(type) {
	case *net.UnixAddr:
		// Connections keep the name under which their socket was made.
		return a.Network == "unix" && filepath.Clean(strings.TrimSuffix(b.Name, newSuffix)) == a.Path
	case *net.TCPAddr:
		if a.Network != "tcp" || fmt.Sprint(b.Port) != a.Port {
			return false
		}
		if every := a.Host == "" || net.ParseIP(a.Host).IsUnspecified(); every || b.IP.IsUnspecified() {
			return every
		}
		want, err := net.ResolveIPAddr("ip", a.Host)
		return err == nil && want.IP.Equal(b.IP)
	}
	return false
}

// Unused returns the sockets that nobody has taken, as text for a warning.
func (in *Inherited) Unused() []string {
	if in == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	var out []string
	for _, n := range in.free {
		out = append(out, fmt.Sprintf("%s (%s %s)", n.name, n.l.Addr().Network(), n.l.Addr()))
	}
	return out
}

// Open returns a listener for a: the inherited socket that is bound to it, or
// a new one. A unix socket gets its mode and owner before it can be found
// under its name; one that a dead process left behind is replaced, one that
// is in use is an error. Closing the listener removes a socket made here and
// leaves an inherited one to systemd.
func Open(a *Address, in *Inherited) (net.Listener, error) {
	if l := in.take(a); l != nil {
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		return l, nil
	}
	if a.Network == "tcp" {
		l, err := net.Listen("tcp", a.Target())
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		return l, nil
	}
	uid, gid, err := a.owner()
	if err != nil {
		return nil, err
	}
	if err := removeStale(a.Path); err != nil {
		return nil, err
	}
	made := a.Path + newSuffix
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listen: %s: there is no directory %s; make it, with an owner that lets postern write there", a, filepath.Dir(a.Path))
		}
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(made, a.Mode)
	if err == nil && (uid >= 0 || gid >= 0) {
		err = os.Chown(made, uid, gid)
	}
	if err == nil {
		err = os.Rename(made, a.Path)
	}
	if err != nil {
		_ = l.Close()       // the reason to give up is err
		_ = os.Remove(made) // as above
		return nil, fmt.Errorf("listen: %s: %w", a, err)
	}
	st, err := os.Stat(a.Path)
	if err != nil {
		_ = l.Close() // the reason to give up is err
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &unixListener{UnixListener: l, path: a.Path, made: st}, nil
}

// removeStale removes a socket at which nobody answers.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("listen: %s is there and is no socket; postern will not remove it", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close() // it was only to see
		return fmt.Errorf("listen: %s is in use by another process", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen: %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// unixListener removes its socket when closed, unless another process has put
// its own there in the meantime.
type unixListener struct {
	*net.UnixListener
	path string
	made fs.FileInfo
	once sync.Once
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	l.once.Do(func() {
		// The name may be another process's by now: compare with our own inode.
		if st, err := os.Stat(l.path); err == nil && os.SameFile(st, l.made) {
			_ = os.Remove(l.path) // best effort: a stale socket is replaced at start
		}
	})
	return l.UnixListener.Close()
}

// Accept waits for a connection, as l.Accept, but rides out what passes by
// itself: a client that has gone already, and a process or system out of file
// descriptors. wait is called with each such error before the pause.
func Accept(l net.Listener, wait func(error)) (net.Conn, error) {
	pause := 5 * time.Millisecond
	for {
		c, err := l.Accept()
		if err == nil {
			return c, nil
		}
		if errors.Is(err, net.ErrClosed) || !passing(err) {
			return nil, err
		}
		wait(err)
		time.Sleep(pause)
		pause = min(2*pause, time.Second)
	}
}

func passing(err error) bool {
	for _, e := range []error{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Name returns a short form of where l listens, for log lines.
func Name(l net.Listener) string {
	return strings.TrimSuffix(l.Addr().Network()+":"+l.Addr().String(), newSuffix)
}
