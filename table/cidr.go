package table

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"
)

// network reads a pattern of a cidr table: "!" any number of times, then an
// address or a network, with brackets around the address or the whole
// (cidr_match(3)).
func (p *parser) network(in *instr, word string, at int) bool {
	s := word
	for strings.HasPrefix(s, "!") {
		in.not = !in.not
		s = s[1:]
	}
	if s == "" {
		p.faultf(at, "no address after %q", word)
		return false
	}
	net, err := parseNetwork(s)
	if err != nil {
		p.faultf(at+len(word)-len(s), "%v", err)
		return false
	}
	in.net = net
	return true
}

func parseNetwork(s string) (netip.Prefix, error) {
	var none netip.Prefix
	text := s
	if strings.HasPrefix(s, "[") {
		inner, after, ok := strings.Cut(s[1:], "]")
		if !ok {
			return none, errors.New("no ] after " + strconv.Quote(s))
		}
		if after != "" && after[0] != '/' {
			return none, errors.New("text after ] in " + strconv.Quote(s))
		}
		text = inner + after
	}
	host, length, slash := strings.Cut(text, "/")
	addr, err := parseAddr(host)
	if err != nil {
		return none, errors.New(strconv.Quote(host) + " is not an address (four numbers, or IPv6; no names, ranges or short forms here)")
	}
	if !slash {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	bits, err := strconv.ParseUint(length, 10, 16)
	if err != nil || int(bits) > addr.BitLen() {
		return none, errors.New(strconv.Quote(length) + " is not a prefix length (0 to " + strconv.Itoa(addr.BitLen()) + ")")
	}
	net := netip.PrefixFrom(addr, int(bits))
	if net.Masked() != net {
		return none, errors.New(strconv.Quote(s) + " has bits set beyond its prefix length: write " + net.Masked().String())
	}
	return net, nil
}

// parseAddr reads an address as inet_pton(3) does: no zone; an IPv4-mapped
// address stays IPv6.
func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err == nil && addr.Zone() != "" {
		err = errors.New("zone")
	}
	return addr, err
}

// run is a stretch of plain cidr rules. Each network holds the first rule that
// covers it, so that one look-up finds the first rule of all that match.
type run struct{ nets bart.Table[int] }

// minRun is from how many plain rules on an index is worth its memory.
const minRun = 16

// link puts long stretches of plain cidr rules behind an index, and arranges
// the rules of pattern tables.
func (t *Table) link() {
	switch t.kind {
	case Regexp, PCRE:
		t.top = newBlock(t.prog, 0, len(t.prog))
		return
	case CIDR:
	default:
		return
	}
	var prog []instr
	moved := make([]int, len(t.prog))
	for i := 0; i < len(t.prog); {
		j := i
		for j < len(t.prog) && t.prog[j].op == opMatch && !t.prog[j].not {
			j++
		}
		if j-i < minRun {
			j = max(j, i+1)
			for ; i < j; i++ {
				moved[i] = len(prog)
				prog = append(prog, t.prog[i])
			}
			continue
		}
		prog = append(prog, instr{op: opRun, run: newRun(t.prog[i:j])})
		i = j
	}
	for i := range prog {
		if prog[i].op == opIf {
			prog[i].end = moved[prog[i].end]
		}
	}
	t.prog = prog
}

func newRun(rules []instr) *run {
	r := &run{}
	rules = slices.Clone(rules)
	slices.SortStableFunc(rules, func(a, b instr) int { return cmp.Compare(a.net.Bits(), b.net.Bits()) })
	for _, in := range rules {
		first := in.rule
		if n, ok := r.nets.LookupPrefix(in.net); ok {
			first = min(first, n)
		}
		r.nets.Insert(in.net, first)
	}
	return r
}
