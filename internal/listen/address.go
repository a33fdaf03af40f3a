// Package listen opens the sockets of a door: unix sockets with mode and
// group, tcp, and sockets handed over by systemd (sd_listen_fds(3)).
package listen

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// Address is where a door listens, as the operator writes it:
//
//	unix:/run/postern/policy.sock,mode=0660,group=postfix,chain=submission
//	tcp:127.0.0.1:10040
//	tcp:[::1]:10040
//
// "inet:" is another word for "tcp:".
type Address struct {
	Network string // "unix" or "tcp"
	Path    string // of a unix socket
	Host    string // of a tcp address; empty: every address of the host
	Port    string // number
	// Mode of a unix socket, default 0666: Postfix's smtpd must be able to
	// write to it, and the directory above says who may reach it.
	Mode os.FileMode
	// User and Group own a unix socket; empty: those of the daemon.
	User, Group string
	// Chain is the chain for requests that name none; empty: the default one.
	Chain string

	text string
}

// Target is what net.Dial takes: the path, or host:port.
func (a *Address) Target() string {
	if a.Network == "unix" {
		return a.Path
	}
	return net.JoinHostPort(a.Host, a.Port)
}

// String returns the address as written, without its options.
func (a Address) String() string {
	if a.Network == "" {
		return ""
	}
	return a.Network + ":" + a.Target()
}

// MarshalText implements [encoding.TextMarshaler].
func (a Address) MarshalText() ([]byte, error) { return []byte(a.text), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Address) UnmarshalText(text []byte) error {
	s := string(text)
	*a = Address{Mode: 0o666, text: s}
	where, options, _ := strings.Cut(s, ",")
	kind, target, _ := strings.Cut(where, ":")
	switch kind {
	case "unix", "local":
		a.Network, a.Path = "unix", target
		switch {
		case !filepath.IsAbs(target):
			return fmt.Errorf("%q: the path of a unix socket must be absolute", s)
		case len(target) > maxUnixPath:
			return fmt.Errorf("%q: the path has %d bytes, a unix socket's at most %d", s, len(target), maxUnixPath)
		}
		a.Path = filepath.Clean(target)
	case "tcp", "inet":
		a.Network = "tcp"
		host, port, err := net.SplitHostPort(target)
		if err != nil {
			return fmt.Errorf("%q: want tcp:HOST:PORT, an IPv6 address in brackets", s)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q: port %q is not a number from 1 to 65535", s, port)
		}
		a.Host, a.Port = host, port
	default:
		return fmt.Errorf("%q: want unix:/PATH or tcp:HOST:PORT", s)
	}
	if options == "" {
		return nil
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(option), "=")
		if !ok || value == "" {
			return fmt.Errorf("%q: option %q is not name=value", s, option)
		}
		if a.Network != "unix" && name != "chain" {
			return fmt.Errorf("%q: option %q is for unix sockets only", s, name)
		}
		switch name {
		case "mode":
			n, err := strconv.ParseUint(value, 8, 32)
			if err != nil || n > 0o777 {
				return fmt.Errorf("%q: mode %q is not an octal file mode such as 0660", s, value)
			}
			a.Mode = os.FileMode(n)
		case "group":
			a.Group = value
		case "user":
			a.User = value
		case "chain":
			a.Chain = value
		default:
			return fmt.Errorf("%q: unknown option %q (one of mode, group, user, chain)", s, name)
		}
	}
	return nil
}

// maxUnixPath is sizeof(sockaddr_un.sun_path) - 1 (unix(7)), less the suffix
// of the name under which the socket is made.
const maxUnixPath = 107 - len(newSuffix)

// newSuffix marks a socket that is not ready yet.
const newSuffix = ".new"

// owner returns the numeric ids to give the socket, -1 for "leave".
func (a *Address) owner() (uid, gid int, err error) {
	uid, gid = -1, -1
	if a.User != "" {
		if uid, err = strconv.Atoi(a.User); err != nil {
			u, err := user.Lookup(a.User)
			if err != nil {
				return 0, 0, fmt.Errorf("listen: %s: there is no user %q", a, a.User)
			}
			uid, _ = strconv.Atoi(u.Uid)
		}
	}
	if a.Group != "" {
		if gid, err = strconv.Atoi(a.Group); err != nil {
			g, err := user.LookupGroup(a.Group)
			if err != nil {
				return 0, 0, fmt.Errorf("listen: %s: there is no group %q", a, a.Group)
			}
			gid, _ = strconv.Atoi(g.Gid)
		}
	}
	return uid, gid, nil
}
