package postfix

import (
	"net"
	"path/filepath"
	"strings"
	"time"
)

// Ours is what of postern's configuration matters to Postfix's.
type Ours struct {
	Hostname string
	// Policy, Milter and Lookup are where the doors listen.
	Policy, Milter, Lookup []Endpoint
	// Relay are the names of the chains that may answer OK.
	Relay []string
	// Budget is the most time that a chain may take, Content the most for a message.
	Budget, Content time.Duration
	// RBL, Greylist and Verify are set where a chain of strangers' mail has the check
	// with something to do.
	RBL, Greylist, Verify bool
	// RBLZones are the DNS lists that are asked.
	RBLZones []string
	// Domains are those whose recipients are verified, "." in front with all below.
	Domains []string
	// Hops are the next hops that are asked about recipients, host:port.
	Hops []string
	// LooksAtContent is set where messages are looked at, and Signs where outgoing mail
	// is signed. RelaysByContent is set where content decides on relaying.
	LooksAtContent, Signs, RelaysByContent bool
	// Data is set where a chain has something to do at DATA.
	Data bool
	// MaxConnections is how many connections the policy door takes.
	MaxConnections int
}

// Endpoint is an address at which a door listens.
type Endpoint struct {
	Network string // "unix" or "tcp"
	Path    string
	Host    string // "" for every address
	Port    string
}

// Postfix returns the endpoint as Postfix names it in a restriction list or a
// table ("unix:PATH", "inet:HOST:PORT"), with a path that smtpd can open, chrooted
// or not; ok is false when a chrooted smtpd cannot.
func (e Endpoint) Postfix(queue string, chroot bool) (text string, ok bool) {
	if e.Network == "unix" {
		if rel, inside := within(queue, e.Path); inside {
			return "unix:" + rel, true
		}
		return "unix:" + e.Path, !chroot
	}
	host := e.Host
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return "inet:" + net.JoinHostPort(host, e.Port), true
}

// within returns a path below the queue directory, from there. Postfix's
// processes work in it, so that such a path is good in a chroot and without.
func within(queue, path string) (string, bool) {
	rel, err := filepath.Rel(queue, path)
	if err != nil || rel == "." || strings.HasPrefix(rel, "../") || rel == ".." {
		return "", false
	}
	return rel, true
}

// parseEndpoint reads what stands in a restriction list, a table or
// smtpd_milters: "unix:PATH", "inet:HOST:PORT", "inet:PORT".
func parseEndpoint(text string) (e Endpoint, ok bool) {
	kind, rest, ok := strings.Cut(text, ":")
	if !ok {
		return e, false
	}
	switch kind {
	case "unix", "local":
		return Endpoint{Network: "unix", Path: rest}, rest != ""
	case "inet", "inet6":
		if host, port, err := net.SplitHostPort(rest); err == nil {
			return Endpoint{Network: "tcp", Host: host, Port: port}, true
		}
		if port, host, ok := strings.Cut(rest, "@"); ok { // as milters name it elsewhere
			return Endpoint{Network: "tcp", Host: host, Port: port}, true
		}
		return Endpoint{Network: "tcp", Port: rest}, rest != ""
	}
	return e, false
}

// same reports whether what Postfix names leads to a door.
func (e Endpoint) same(door Endpoint, queue string) bool {
	if e.Network != door.Network {
		return false
	}
	if e.Network == "unix" {
		path := e.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(queue, path)
		}
		return filepath.Clean(path) == filepath.Clean(door.Path) || filepath.Join(queue, e.Path) == filepath.Clean(door.Path)
	}
	return e.Port == door.Port && (e.Host == door.Host || everywhere(door.Host) || everywhere(e.Host) || loopback(e.Host) && loopback(door.Host))
}

func everywhere(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// doorOf returns which of the doors a text leads to.
func doorOf(text, queue string, doors []Endpoint) (Endpoint, bool) {
	e, ok := parseEndpoint(text)
	if !ok {
		return e, false
	}
	for _, d := range doors {
		if e.same(d, queue) {
			return d, true
		}
	}
	return e, false
}
