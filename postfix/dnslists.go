package postfix

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DNSLists are the DNS lists that a Postfix asks, as postern's [rbl] section
// has them.
type DNSLists struct {
	// Lists are entries for rbl.lists, "[kind:]zone[=filter]*weight".
	Lists []string
	// RejectAt is the score from which on Postfix refuses.
	RejectAt int
	// Shadow are zones that Postfix only warns of.
	Shadow []string
	// Remove are what is to be taken out of main.cf and master.cf then, each with its place.
	Remove []string
	// Left are what cannot be said in the same way, and why.
	Left []string
}

// The restrictions that ask DNS lists, and what they ask about (postconf(5)).
// An empty kind is the client's address.
var dnsRestrictions = map[string]string{
	"reject_rbl_client": "", "reject_rbl": "", "reject_rhsbl_client": "name:", "reject_rhsbl_reverse_client": "reverse:",
	"reject_rhsbl_helo": "helo:", "reject_rhsbl_sender": "sender:",
}

// maxWeight is the most weight of an entry, and enough to outweigh lists that refuse.
const maxWeight = 1000

// DNSLists returns the DNS lists that Postfix asks: restrictions, each of which
// refuses alone, and postscreen_dnsbl_sites with their weights.
func (s *Setup) DNSLists() *DNSLists {
	out := &DNSLists{RejectAt: 1}
	threshold := 1
	sites := words(s.Value(nil, "postscreen_dnsbl_sites"))
	if len(sites) > 0 {
		if n, err := strconv.Atoi(s.Value(nil, "postscreen_dnsbl_threshold")); err == nil && n > 0 {
			threshold = n
		}
		switch action := s.Value(nil, "postscreen_dnsbl_action"); action {
		case "enforce", "drop":
		default:
			out.Left = append(out.Left, fmt.Sprintf("postscreen_dnsbl_action = %s: postscreen only watches its lists; here they refuse from a score of %d (rbl.mode = \"shadow\" watches)", action, threshold))
		}
		if v := s.Value(nil, "postscreen_dnsbl_reply_map"); v != "" {
			out.Left = append(out.Left, "postscreen_dnsbl_reply_map = "+v+": names of lists in replies are name in [[rbl.zone]]")
		}
	}
	out.RejectAt = threshold
	for _, site := range sites {
		entry, weight := site, ""
		if i := strings.LastIndexByte(site, '*'); i >= 0 {
			entry, weight = site[:i], site[i+1:]
		}
		n := 1
		if weight != "" {
			var err error
			if n, err = strconv.Atoi(weight); err != nil || n == 0 {
				out.Left = append(out.Left, "postscreen_dnsbl_sites: "+site+" has no weight that counts")
				continue
			}
		}
		out.add("", entry, n)
	}
	if len(sites) > 0 {
		out.Remove = append(out.Remove, "postscreen_dnsbl_sites (postscreen's cache of who has passed goes with it)")
	}
	seen := make(map[string]bool)
	visit := func(of *Service, place string) {
		warn := false
		for _, r := range Restrictions(s.Value(of, place)) {
			if r.Name == "warn_if_reject" {
				warn = true
				continue
			}
			s.restriction(&r, warn, threshold, out, func() {
				where := place
				if of != nil {
					where = of.Name + "/" + of.Type + " " + place
				}
				text := where + ": " + r.Text
				if !seen[text] {
					seen[text] = true
					out.Remove = append(out.Remove, text)
				}
			})
			warn = false
		}
	}
	services := s.SMTPD()
	for _, place := range []string{"smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions", "smtpd_relay_restrictions", "smtpd_recipient_restrictions"} {
		visit(nil, place)
		for _, of := range services {
			if _, own := of.Set[place]; own {
				visit(of, place)
			}
		}
	}
	for _, name := range []string{"rbl_reply_maps", "default_rbl_reply"} {
		if s.IsSet(nil, name) {
			out.Left = append(out.Left, name+": replies are rbl.reply and reply in [[rbl.zone]]")
		}
	}
	slices.Sort(out.Left)
	out.Left = slices.Compact(out.Left)
	return out
}

// restriction takes one restriction; used is called for one that is taken.
func (s *Setup) restriction(r *Restriction, warn bool, threshold int, out *DNSLists, used func()) {
	arg := r.Arg
	switch kind, ok := dnsRestrictions[r.Name]; {
	case ok && arg == "":
		out.Left = append(out.Left, r.Text+": names no list")
	case ok:
		out.add(kind, arg, threshold)
		if zone, _, _ := strings.Cut(arg, "="); warn && !slices.Contains(out.Shadow, zone) {
			out.Shadow = append(out.Shadow, zone)
		}
		used()
	case r.Name == "permit_dnswl_client":
		out.add("", arg, -maxWeight)
		out.Left = append(out.Left, r.Text+": has outweighed every list; what stood behind it in the same restrictions it has skipped too, which a list here does not")
		used()
	case r.Name == "permit_rhswl_client":
		out.add("name:", arg, -maxWeight)
		out.Left = append(out.Left, r.Text+": as permit_dnswl_client")
		used()
	case r.Name == "reject_rhsbl_recipient":
		out.Left = append(out.Left, r.Text+": asks about your own recipients' domains; there is no such list here")
	}
}

// add adds an entry, or raises the weight of one that is there.
func (l *DNSLists) add(kind, entry string, weight int) {
	entry = kind + strings.ToLower(entry)
	for i, have := range l.Lists {
		at := strings.LastIndexByte(have, '*')
		if have[:at] != entry {
			continue
		}
		if n, _ := strconv.Atoi(have[at+1:]); weight > n {
			l.Lists[i] = entry + "*" + strconv.Itoa(weight)
		}
		return
	}
	l.Lists = append(l.Lists, entry+"*"+strconv.Itoa(weight))
}

// TOML returns the section for postern's configuration.
func (l *DNSLists) TOML() string {
	var b strings.Builder
	b.WriteString("[rbl]\n")
	if len(l.Lists) == 0 {
		b.WriteString("# Postfix asks no DNS list.\n")
	}
	b.WriteString("lists = [\n")
	for _, e := range l.Lists {
		fmt.Fprintf(&b, "  %q,\n", e)
	}
	fmt.Fprintf(&b, "]\nreject_at = %d\n", l.RejectAt)
	for _, zone := range l.Shadow {
		fmt.Fprintf(&b, "\n[[rbl.zone]]\nzone = %q\nmode = \"shadow\" # warn_if_reject\n", strings.ToLower(zone))
	}
	return b.String()
}
