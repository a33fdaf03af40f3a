package provider

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"postern/internal/conf"
)

// Bounds of one file of networks.
const (
	maxFile     = 64 << 20
	maxFileNets = 1_000_000
	maxFaults   = 20
)

// readFiles reads files of networks: one network or address a line, "#"
// begins a comment, and what follows the network is a remark. All faults of
// all files are reported, up to a bound.
func readFiles(paths []string) ([]Entry, conf.Faults) {
	var entries []Entry
	var faults conf.Faults
	for _, path := range paths {
		text, err := readBounded(path, maxFile)
		if err != nil {
			faults.Filef(path, 0, 0, "%v", err)
			continue
		}
		e, bad := parseFile(path, text)
		entries = append(entries, e...)
		faults = append(faults, bad...)
	}
	slices.SortStableFunc(entries, byPrefix)
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Prefix == b.Prefix }), faults
}

// readBounded reads a file of at most so many bytes.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err // the path stands in front already
		}
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return text, err
}

func parseFile(path string, text []byte) (entries []Entry, faults conf.Faults) {
	in := bufio.NewScanner(bytes.NewReader(text))
	for line := 1; in.Scan(); line++ {
		s := in.Text()
		if line == 1 {
			s = strings.TrimPrefix(s, "\ufeff")
		}
		s, _, _ = strings.Cut(s, "#")
		word := strings.TrimLeft(s, " \t")
		column := len(s) - len(word) + 1
		if i := strings.IndexAny(word, " \t\r"); i >= 0 {
			word = word[:i]
		}
		if word == "" {
			continue
		}
		p, err := parsePrefix(word)
		if err != nil {
			if faults.Filef(path, line, column, "%v", err); len(faults) >= maxFaults {
				faults.Filef(path, line, 0, "too many faults, the rest was not read")
				return entries, faults
			}
			continue
		}
		entries = append(entries, Entry{Prefix: p, Record: path, Term: fmt.Sprintf("line %d", line)})
		if len(entries) > maxFileNets {
			faults.Filef(path, line, 0, "more than %d networks", maxFileNets)
			return entries, faults
		}
	}
	if err := in.Err(); err != nil {
		faults.Filef(path, 0, 0, "%v", err)
	}
	return entries, faults
}

// parsePrefix reads an address or a network without host bits.
func parsePrefix(s string) (netip.Prefix, error) {
	if len(s) > 60 {
		return netip.Prefix{}, fmt.Errorf("%q... is not an address or network", s[:57])
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not an address or network", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not an address or network", s)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q: write IPv4 networks as IPv4", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits set behind the prefix length: did you mean %v?", s, p.Masked())
	}
	return p, nil
}
