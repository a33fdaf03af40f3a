package moving

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Dump calls yield for each record of a Berkeley DB dump as db_dump(1) writes
// it, with or without -p. line is that of the key.
func Dump(r io.Reader, yield func(line int, key, value string)) error {
	header, plain, done := true, false, false
	key, at, have := "", 0, false
	last := 0
	err := scanLines(r, func(n int, line string) error {
		last = n
		switch {
		case header:
			name, value, _ := strings.Cut(line, "=")
			switch name {
			case "VERSION":
				if value != "3" && value != "2" {
					return fmt.Errorf("line %d: a dump of version %q; 3 is known", n, value)
				}
			case "format":
				plain = value == "print"
			case "type":
				if value != "btree" && value != "hash" {
					return fmt.Errorf("line %d: a database of type %q; btree and hash are known", n, value)
				}
			case "HEADER":
				header = false
			}
			if n == 1 && name != "VERSION" {
				return errors.New("line 1: no dump of db_dump: VERSION= is missing")
			}
			return nil
		case line == "DATA=END":
			header, done = true, true // another database may follow
			return nil
		}
		done = false
		text, err := dumped(line, plain)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if !have {
			key, at, have = text, n, true
			return nil
		}
		have = false
		yield(at, strings.TrimSuffix(key, "\x00"), strings.TrimSuffix(text, "\x00"))
		return nil
	})
	if err == nil && !done {
		return fmt.Errorf("line %d: the dump ends without DATA=END", last)
	}
	return err
}

// dumped reads one key or value, which begins with a space.
func dumped(line string, plain bool) (string, error) {
	line, ok := strings.CutPrefix(line, " ")
	if !ok {
		return "", errors.New("keys and values begin with a space")
	}
	if !plain {
		b, err := hex.DecodeString(line)
		if err != nil {
			return "", errors.New("not hexadecimal")
		}
		return string(b), nil
	}
	if !strings.Contains(line, `\`) {
		return line, nil
	}
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		if line[i] != '\\' {
			b.WriteByte(line[i])
			continue
		}
		rest := line[i+1:]
		if strings.HasPrefix(rest, `\`) {
			b.WriteByte('\\')
			i++
			continue
		}
		if len(rest) < 2 {
			return "", fmt.Errorf("character %d: an escape without two digits", i+2)
		}
		c, err := strconv.ParseUint(rest[:2], 16, 8)
		if err != nil {
			return "", fmt.Errorf("character %d: %q is no escape", i+2, line[i:i+3])
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), nil
}

// Postgrey reads dumps of postgrey's postgrey.db and, unless it is nil, of
// postgrey_clients.db.
//
// postgrey.db has "network/sender/recipient" and "first,last[,rest of the
// address]": who was seen again after the delay has passed, and delay is what
// postgrey ran with (300 s). postgrey_clients.db has the address of a client,
// and "passes,last". Where triplets know the network only, a client of it
// stands for it.
func Postgrey(triplets, clients io.Reader, delay int64) (*Greylisted, error) {
	g := new(Greylisted)
	byNet := make(map[netip.Prefix]netip.Addr)
	if clients != nil {
		err := Dump(clients, func(line int, key, value string) { g.postgreyClient(line, key, value, byNet) })
		if err != nil {
			return nil, fmt.Errorf("clients: %w", err)
		}
	}
	err := Dump(triplets, func(line int, key, value string) {
		g.postgreyTriplet(line, key, value, delay, byNet)
	})
	slices.SortStableFunc(g.Past, func(a, b Pass) int { return a.Time.Compare(b.Time) })
	return g, err
}

// hidden reports whether a key is one of postgrey --privacy, a SHA-1.
func hidden(key string) bool {
	_, err := hex.DecodeString(key)
	return len(key) == 40 && err == nil
}

func (g *Greylisted) postgreyClient(line int, key, value string, byNet map[netip.Prefix]netip.Addr) {
	where := fmt.Sprintf("line %d", line)
	if hidden(key) {
		g.Hidden++
		return
	}
	addr, ok := address(key)
	passes, last, _ := strings.Cut(value, ",")
	n, err := strconv.Atoi(passes)
	at, timed := seconds(last)
	if !ok || err != nil || n < 0 || !timed {
		g.unread(where, "%q %q is no client", key, value)
		return
	}
	g.Past = append(g.Past, Pass{Time: at, Client: addr, Passes: n})
	if p, ok := netOf(addr); ok {
		byNet[p] = addr
	}
}

func netOf(a netip.Addr) (netip.Prefix, bool) {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	return p, err == nil
}

func (g *Greylisted) postgreyTriplet(line int, key, value string, delay int64, byNet map[netip.Prefix]netip.Addr) {
	where := fmt.Sprintf("line %d", line)
	if hidden(key) {
		g.Hidden++
		return
	}
	net, rest, _ := strings.Cut(key, "/")
	// A sender may hold a slash, a recipient's domain may not.
	cut := strings.LastIndexByte(rest[:max(0, strings.LastIndexByte(rest, '@'))], '/')
	if cut < 0 {
		cut = strings.LastIndexByte(rest, '/')
	}
	fields := strings.Split(value, ",")
	if cut < 0 || len(fields) < 2 {
		g.unread(where, "%q %q is no triplet", key, value)
		return
	}
	if len(fields) > 2 && strings.HasSuffix(net, ".0") { // versions of old kept the rest
		net = strings.TrimSuffix(net, "0") + strings.TrimPrefix(fields[2], ".")
	}
	addr, ok := address(net)
	first, ok1 := seconds(fields[0])
	last, ok2 := seconds(fields[1])
	if !ok || !ok1 || !ok2 {
		g.unread(where, "%q %q is no triplet", key, value)
		return
	}
	if last.Unix()-first.Unix() < delay {
		g.Waiting++
		return
	}
	if p, ok := netOf(addr); ok && p.Addr() == addr {
		if known, ok := byNet[p]; ok {
			addr = known
		}
	}
	g.Past = append(g.Past, Pass{Time: last, Client: addr, Sender: rest[:cut], Recipient: rest[cut+1:]})
}
