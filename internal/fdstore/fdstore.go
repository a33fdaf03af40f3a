// Package fdstore gives open files to systemd when the process ends, so that
// the next one has them (FileDescriptorStoreMax= of systemd.service(5),
// sd_pid_notify_with_fds(3)). They come back beside the sockets of
// sd_listen_fds(3), under the name that they were given with.
package fdstore

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Capacity returns how many files systemd keeps for this process, 0 when it
// keeps none: the service manager says so in FDSTORE (since version 254), or
// the unit does.
func Capacity() int {
	n, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil || n < 0 || os.Getenv("NOTIFY_SOCKET") == "" {
		return 0
	}
	return n
}

// perMessage is below the most files that the kernel takes in one message
// (SCM_MAX_FD, 253).
const perMessage = 200

// patience is how long systemd may take to say that it has read everything.
const patience = 5 * time.Second

// Keep gives copies of files to systemd, all under one name, and returns once
// it has them. The files stay open.
func Keep(name string, files []*os.File) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // everything has been said
	for len(files) > 0 {
		some := files[:min(len(files), perMessage)]
		files = files[len(some):]
		if err := send(c, "FDSTORE=1\nFDNAME="+name, some); err != nil {
			return err
		}
	}
	return barrier(c)
}

// Forget has systemd close its copies of what has this name.
func Forget(name string) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // everything has been said
	return send(c, "FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

func dial() (*net.UnixConn, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, errors.New("fdstore: there is no NOTIFY_SOCKET")
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("fdstore: %w", err)
	}
	return c, nil
}

func send(c *net.UnixConn, state string, files []*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("fdstore: %w", err)
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = syscall.Sendmsg(int(fd), []byte(state), oob, nil, 0)
		return !errors.Is(failed, syscall.EAGAIN)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("fdstore: %w", err)
	}
	return nil
}

// barrier waits until systemd has read what came before: it then closes the
// file that comes with BARRIER=1 (sd_notify(3)). Of a process that has ended
// meanwhile it would not know whose the files are.
func barrier(c *net.UnixConn) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("fdstore: %w", err)
	}
	defer r.Close() //nolint:errcheck // only read
	err = send(c, "BARRIER=1", []*os.File{w})
	_ = w.Close() // only systemd's copy is left
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("fdstore: %w", err)
	}
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("fdstore: systemd does not say that it has the files")
	}
	return nil
}
