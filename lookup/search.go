package lookup

import (
	"iter"
	"net/netip"
	"strings"

	"postern/internal/mailaddr"
)

// Search says which keys beside the whole one a table is asked for. In an
// indexed file Postfix tries them itself; of a socketmap, as of a regexp or
// pcre table, it asks only the whole key (maps_find(3) without
// DICT_FLAG_FIXED). So a texthash that is served over the door needs the
// search done here. Pattern tables are asked for the whole key alone, as ever.
type Search string

// The searches.
const (
	// SearchExact asks for the key as it is.
	SearchExact Search = "exact"
	// SearchAccess is that of access(5), for client names and addresses, HELO
	// names, senders and recipients.
	SearchAccess Search = "access"
	// SearchTransport is that of transport(5).
	SearchTransport Search = "transport"
	// SearchVirtual is that of virtual(5) and canonical(5): what is found for
	// an address without its extension gets the extension.
	SearchVirtual Search = "virtual"
	// SearchMailbox is the same for tables that list addresses, where the
	// extension is of no interest.
	SearchMailbox Search = "mailbox"
	// SearchDomain is that of lists of domains such as relay_domains.
	SearchDomain Search = "domain"
)

var searches = []Search{SearchExact, SearchAccess, SearchTransport, SearchVirtual, SearchMailbox, SearchDomain}

// searcher makes the further keys of one table.
type searcher struct {
	kind       Search
	delimiters string
	dots       bool            // parents are written ".example.org"
	local      map[string]bool // domains whose users may stand without one
}

// maxSearched is the longest key for which others are tried. Addresses and
// names that Postfix lets in are shorter (line_length_limit is 2048); what is
// longer is a line of a message, or somebody who wants to keep us busy.
const maxSearched = 4096

// further yields the keys to try after key itself, from the most specific to
// the most general, and with each the extension, with its delimiter, that was
// taken off it.
func (s *searcher) further(key string) iter.Seq2[string, string] {
	return func(yield func(key, extension string) bool) {
		if len(key) > maxSearched {
			return
		}
		switch s.kind {
		case SearchExact:
		case SearchAccess:
			s.access(key, yield)
		case SearchTransport:
			s.transport(key, yield)
		case SearchVirtual, SearchMailbox:
			s.mailbox(key, yield)
		case SearchDomain:
			if _, err := netip.ParseAddr(key); err != nil {
				s.parents(key, yield)
			}
		}
	}
}

func splitAddress(key string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(key, '@')
	if i < 0 {
		return "", "", false
	}
	return key[:i], key[i+1:], true
}

// extension splits a local part: user, and the rest with its delimiter.
func (s *searcher) extension(local string) (user, extension string) {
	user, _, _ = mailaddr.SplitExtension(local, s.delimiters)
	return user, local[len(user):]
}

// access is check_access(3), check_domain_access, check_addr_access and
// check_mail_access of smtpd.
func (s *searcher) access(key string, yield func(key, extension string) bool) {
	local, domain, isAddress := splitAddress(key)
	if !isAddress {
		if addr, err := netip.ParseAddr(key); err == nil {
			s.networks(key, addr, yield)
			return
		}
		s.parents(key, yield)
		return
	}
	user, ext := s.extension(local)
	if ext != "" && !yield(user+"@"+domain, ext) {
		return
	}
	if !yield(domain, "") || !s.parents(domain, yield) || !yield(local+"@", "") {
		return
	}
	if ext != "" {
		yield(user+"@", ext)
	}
}

// networks yields an address cut at its last separator, again and again. Of
// an IPv6 address the text is cut, which is of use to nobody, but so it is.
func (s *searcher) networks(key string, addr netip.Addr, yield func(key, extension string) bool) {
	separator := byte('.')
	if !addr.Is4() {
		separator = ':'
	}
	for {
		i := strings.LastIndexByte(key, separator)
		if i <= 0 {
			return
		}
		if key = key[:i]; !yield(key, "") {
			return
		}
	}
}

// parents yields the domains above name, the top-level domain too.
func (s *searcher) parents(name string, yield func(key, extension string) bool) bool {
	for {
		i := strings.IndexByte(name, '.')
		if i < 0 || i == len(name)-1 {
			return true
		}
		parent := name[i:]
		name = name[i+1:]
		if !s.dots {
			parent = name
		}
		if !yield(parent, "") {
			return false
		}
	}
}

// transport is mail_addr_find(3) with MA_FIND_FULL, NOEXT and DOMAIN. "*" is
// asked for by Postfix.
func (s *searcher) transport(key string, yield func(key, extension string) bool) {
	local, domain, isAddress := splitAddress(key)
	if !isAddress {
		return
	}
	if user, ext := s.extension(local); ext != "" && !yield(user+"@"+domain, ext) {
		return
	}
	if yield(domain, "") {
		s.parents(domain, yield)
	}
}

// mailbox is mail_addr_find(3) with its default strategy.
func (s *searcher) mailbox(key string, yield func(key, extension string) bool) {
	local, domain, isAddress := splitAddress(key)
	if !isAddress {
		return
	}
	user, ext := s.extension(local)
	if ext != "" && !yield(user+"@"+domain, ext) {
		return
	}
	if s.local[mailaddr.Domain(domain)] {
		if !yield(local, "") || ext != "" && !yield(user, ext) {
			return
		}
	}
	yield("@"+domain, "")
}

// propagate puts an extension on each address of a result, as
// mail_addr_crunch(3) does.
func propagate(result, extension string) string {
	if strings.HasPrefix(result, "@") {
		return result // Postfix puts the whole user in front of it
	}
	var b strings.Builder
	b.Grow(len(result) + 2*len(extension))
	for i, one := range splitAddresses(result) {
		if i > 0 {
			b.WriteString(", ")
		}
		at := strings.LastIndexByte(one, '@')
		if at < 0 {
			at = len(one)
		}
		b.WriteString(one[:at])
		b.WriteString(extension)
		b.WriteString(one[at:])
	}
	return b.String()
}

// splitAddresses parts a list of addresses at its commas, not at those inside
// quotes.
func splitAddresses(list string) []string {
	var out []string
	quoted, start := false, 0
	for i := 0; i <= len(list); i++ {
		if i == len(list) || list[i] == ',' && !quoted {
			if one := strings.TrimSpace(list[start:i]); one != "" {
				out = append(out, one)
			}
			start = i + 1
			continue
		}
		switch list[i] {
		case '\\':
			if quoted {
				i++
			}
		case '"':
			quoted = !quoted
		}
	}
	return out
}
