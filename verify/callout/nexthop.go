package callout

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Hop is one next hop, as transport(5) writes it.
type Hop struct {
	LMTP bool
	Path string     // of a unix socket; then nothing below is set
	Host string     // a name in lower case, empty when Addr is valid
	Addr netip.Addr // a literal address
	MX   bool       // Host's MX records say where; else its addresses
	Port uint16
	// explicit is set when the port was written.
	explicit bool
}

// Default ports (RFC 5321; lmtp_tcp_port of postconf(5)).
const (
	smtpPort = 25
	lmtpPort = 24
)

// maxHops is the most next hops of one list.
const maxHops = 10

// String returns the hop as transport(5) writes it.
func (h Hop) String() string {
	if h.Path != "" {
		return "lmtp:unix:" + h.Path
	}
	name := h.Host
	if h.Addr.IsValid() {
		name = h.Addr.String()
	}
	if !h.MX && !h.LMTP || h.Addr.IsValid() {
		name = "[" + name + "]"
	}
	def := uint16(smtpPort)
	if h.LMTP {
		name, def = "lmtp:"+name, lmtpPort
	}
	if h.Port != def {
		name += ":" + strconv.Itoa(int(h.Port))
	}
	return name
}

// ParseHops reads a list of next hops in order of preference, parted by
// commas: "[host]", "[host]:port", "host:port" and "host" (by MX), addresses in
// brackets, each with "smtp:" or "lmtp:" in front where it matters;
// "lmtp:unix:/path", "lmtp:inet:host:port". Ports are numbers.
func ParseHops(s string) ([]Hop, error) {
	lmtp := false
	var out []Hop
	for i, part := range strings.Split(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			return nil, errors.New("an empty next hop")
		}
		if rest, ok := strings.CutPrefix(part, "smtp:"); ok && rest != "" {
			part, lmtp = rest, false
		} else if rest, ok := strings.CutPrefix(part, "lmtp:"); ok && rest != "" {
			part, lmtp = rest, true
		} else if i == 0 {
			lmtp = false
		}
		h, err := parseHop(strings.TrimSpace(part), lmtp)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	if len(out) > maxHops {
		return nil, fmt.Errorf("%d next hops, at most %d", len(out), maxHops)
	}
	return out, nil
}

func parseHop(s string, lmtp bool) (Hop, error) {
	h := Hop{LMTP: lmtp, Port: smtpPort, MX: !lmtp}
	if lmtp {
		h.Port = lmtpPort
		if path, ok := strings.CutPrefix(s, "unix:"); ok {
			if !strings.HasPrefix(path, "/") {
				return Hop{}, fmt.Errorf("%q: the path of a socket begins with /", s)
			}
			if policy.Printable(path) != path {
				return Hop{}, fmt.Errorf("%q: the path of a socket is printable ASCII", s)
			}
			return Hop{LMTP: true, Path: path}, nil
		}
		s = strings.TrimPrefix(s, "inet:")
	}
	name, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return Hop{}, fmt.Errorf("%q: no closing bracket", s)
		}
		name, port = s[1:end], s[end+1:]
		h.MX = false
		if port != "" && port[0] != ':' {
			return Hop{}, fmt.Errorf("%q: want :port behind the bracket", s)
		}
		port = strings.TrimPrefix(port, ":")
		if s[end+1:] == ":" {
			return Hop{}, fmt.Errorf("%q: no port behind the colon", s)
		}
		name = strings.TrimPrefix(name, "IPv6:")
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		if strings.Count(s, ":") > 1 {
			return Hop{}, fmt.Errorf("%q: an IPv6 address stands in brackets", s)
		}
		name, port = s[:i], s[i+1:]
		if port == "" {
			return Hop{}, fmt.Errorf("%q: no port behind the colon", s)
		}
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Hop{}, fmt.Errorf("%q: %q is not a port number", s, port)
		}
		h.Port, h.explicit = uint16(n), true
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		if h.MX {
			return Hop{}, fmt.Errorf("%q: an IP address stands in brackets", s)
		}
		h.Addr, h.MX = addr.Unmap().WithZone(""), false
		if thisHost(h.Addr) && (!h.explicit || h.Port == smtpPort) {
			return Hop{}, fmt.Errorf("%q is this host itself: a loopback address needs a port other than %d", s, smtpPort)
		}
		return h, nil
	}
	h.Host = mailaddr.Domain(name)
	if h.Host == "" || strings.ContainsAny(h.Host, " \t/@[]\"") || len(h.Host) > 253 ||
		slices.Contains(strings.Split(h.Host, "."), "") || policy.Printable(h.Host) != h.Host {
		return Hop{}, fmt.Errorf("%q is not a host name", name)
	}
	if h.Host == "localhost" && (!h.explicit || h.Port == smtpPort) {
		return Hop{}, fmt.Errorf("%q is this host itself: it needs a port other than %d", s, smtpPort)
	}
	return h, nil
}

// thisHost reports whether an address leads to this host on every host: who
// connects to the unspecified one does too.
func thisHost(a netip.Addr) bool { return a.IsLoopback() || a.IsUnspecified() }

// Services tells which transports of master.cf(5) can be asked.
type Services struct {
	SMTP, LMTP []string
}

// ErrNotProbed is returned for a transport that is neither SMTP nor LMTP.
var ErrNotProbed = errors.New("the transport cannot be asked")

// FromTransport reads the result of a transport(5) look-up for a domain. It
// returns no hops for ":", which changes nothing.
func FromTransport(result, domain string, svc Services) ([]Hop, error) {
	name, next, ok := strings.Cut(result, ":")
	if !ok {
		return nil, fmt.Errorf("%q: want transport:nexthop", result)
	}
	name, next = strings.TrimSpace(name), strings.TrimSpace(next)
	if name == "" && next == "" {
		return nil, nil
	}
	if next == "" {
		next = domain
	}
	scheme := "smtp:"
	switch {
	case name == "":
	case slices.Contains(svc.SMTP, name):
	case slices.Contains(svc.LMTP, name):
		scheme = "lmtp:"
	default:
		return nil, fmt.Errorf("%w: %s", ErrNotProbed, name)
	}
	return ParseHops(scheme + next)
}
