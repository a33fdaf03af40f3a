// Package netns runs a test in a network namespace of its own, where the
// kernel's counters count nothing but the test (network_namespaces(7)).
package netns

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// Namespace is one in which loopback is up.
type Namespace struct{ tb testing.TB }

// Enter moves the calling goroutine, and the thread that it is locked to from
// now on, into a new namespace. Sockets that it makes are there, whoever uses
// them. The thread ends with the goroutine. Without the right to do so the test
// is skipped, and with CI=true it fails.
func Enter(tb testing.TB) *Namespace {
	tb.Helper()
	runtime.LockOSThread() // for good: the thread is not to be used again
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("a network namespace: %v", err)
		}
		tb.Skipf("a network namespace: %v", err)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer syscall.Close(fd) //nolint:errcheck // it was only asked
	// struct ifreq: the name, then the flags (netdevice(7)).
	var req struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], "lo")
	req.flags = syscall.IFF_UP | syscall.IFF_RUNNING
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); errno != 0 {
		tb.Fatalf("loopback: %v", errno)
	}
	return &Namespace{tb}
}

// DelayedACKs returns how many acknowledgements the kernel has held back until
// its timer went off. It is called by the goroutine that has entered.
func (n *Namespace) DelayedACKs() int {
	n.tb.Helper()
	f, err := os.Open("/proc/thread-self/net/netstat")
	if err != nil {
		n.tb.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	var names []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "DelayedACKs" && i < len(fields) {
				v, err := strconv.Atoi(fields[i])
				if err != nil {
					n.tb.Fatal(err)
				}
				return v
			}
		}
	}
	n.tb.Fatal("the kernel does not count delayed acknowledgements")
	return 0
}
