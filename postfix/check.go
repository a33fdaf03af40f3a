package postfix

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // mail is lost, relayed for strangers, or postern does not work
	Warning Severity = "warning" // it costs, or will when something fails
	Note    Severity = "note"    // worth knowing
)

// Finding is one thing about a setup.
type Finding struct {
	Severity Severity `json:"severity"`
	// Slug names the kind of finding; docs/postfix.md has them all.
	Slug string `json:"slug"`
	// Where is the parameter, or the service and parameter.
	Where string `json:"where"`
	// Text says what goes wrong.
	Text string `json:"text"`
	// Fix is the line that fixes it, a command or a setting; "" where only a person
	// can tell.
	Fix string `json:"fix,omitempty"`
}

// checker collects findings.
type checker struct {
	s    *Setup
	o    *Ours
	out  []Finding
	seen map[string]bool
}

func (c *checker) say(sev Severity, slug, where, fix, format string, args ...any) {
	f := Finding{sev, slug, where, fmt.Sprintf(format, args...), fix}
	if key := f.Slug + "\x00" + f.Where + "\x00" + f.Text; !c.seen[key] {
		c.seen[key] = true
		c.out = append(c.out, f)
	}
}

// lists are the restriction lists, in the order in which smtpd goes through
// them for a recipient.
var lists = []string{
	"smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions", "smtpd_relay_restrictions", "smtpd_recipient_restrictions",
	"smtpd_data_restrictions", "smtpd_end_of_data_restrictions",
}

// Check says what is wrong or dangerous about a setup beside postern, the worst
// first.
func Check(s *Setup, o *Ours) []Finding {
	c := &checker{s: s, o: o, seen: make(map[string]bool)}
	services := s.SMTPD()
	if len(services) == 0 {
		services = []*Service{{Name: "smtp", Type: "inet", Command: "smtpd", Set: map[string]string{}}}
	}
	asked, milter := false, false
	for _, of := range services {
		asked = c.restrictions(of) || asked
		milter = c.milters(of) || milter
	}
	if !asked && len(o.Policy) > 0 {
		text, ok := reachableText(o.Policy, s.Queue(), chrooted(services))
		if !ok {
			text, _ = o.Policy[0].Postfix(s.Queue(), false)
		}
		c.say(Error, "not-asked", "smtpd_recipient_restrictions", "check_policy_service { "+text+", timeout=25s, default_action=DUNNO } behind reject_unauth_destination",
			"no restriction list asks postern's policy door: nothing is checked")
	}
	if !milter && o.LooksAtContent && len(o.Milter) > 0 {
		c.say(Error, "milter-missing", "smtpd_milters", "postconf -e 'smtpd_milters = "+milterText(o.Milter[0], s.Queue())+"'",
			"messages are to be looked at (header rules, authentication or signing), and Postfix does not show them to postern's milter door")
	}
	c.main()
	c.networks()
	c.names()
	c.hops()
	c.recipients()
	slices.SortStableFunc(c.out, func(a, b Finding) int { return rank(a.Severity) - rank(b.Severity) })
	return c.out
}

func chrooted(services []*Service) bool {
	return slices.ContainsFunc(services, func(s *Service) bool { return s.Chroot })
}

func rank(s Severity) int { return slices.Index([]Severity{Error, Warning, Note}, s) }

// where names a parameter of a service.
func (c *checker) where(of *Service, name string) string {
	if _, own := of.Set[name]; own {
		return of.Name + "/" + of.Type + " " + name
	}
	return name
}

// fix is a command that sets a parameter where it is set now.
func (c *checker) fix(of *Service, name, value string) string {
	if _, own := of.Set[name]; own {
		return fmt.Sprintf("postconf -P '%s/%s/%s=%s'", of.Name, of.Type, name, value)
	}
	return fmt.Sprintf("postconf -e '%s = %s'", name, value)
}

// restrictions looks at all lists of a service, and reports whether postern is
// asked in one.
func (c *checker) restrictions(of *Service) (asked bool) {
	s, o, queue := c.s, c.o, c.s.Queue()
	count := map[string][]string{} // lists that ask a door about RCPT, by context
	for _, list := range lists {
		all := Restrictions(s.Value(of, list))
		guard := guarded(all)
		for i := range all {
			r := &all[i]
			switch {
			case r.Name == "check_policy_service":
				door, ours := doorOf(r.Arg, queue, o.Policy)
				if !ours {
					c.otherService(of, list, r)
					continue
				}
				asked = true
				c.service(of, list, r, door, i, guard, all)
				if list != "smtpd_data_restrictions" && list != "smtpd_end_of_data_restrictions" {
					count[c.contextOf(of, r)] = append(count[c.contextOf(of, r)], list)
				}
			case r.Name == "reject_rbl_client" || strings.HasPrefix(r.Name, "reject_rhsbl_"):
				if o.RBL {
					c.say(Warning, "rbl-twice", c.where(of, list), "take "+r.Text+" out of "+list,
						"%s asks a DNS list that postern asks or could: one listing refuses at once there, without weights, allow lists and the reference in the reply", r.Text)
				}
			case unauth(r.Name) && list == "smtpd_recipient_restrictions" && c.permitsRelay(of):
				c.say(Error, "relay-refused", c.where(of, list), "take "+r.Name+" out of "+list,
					"%s refuses what the relay chain in smtpd_relay_restrictions has permitted", r.Name)
			case r.Name == "reject_unverified_recipient" && o.Verify:
				c.say(Warning, "verify-twice", c.where(of, list), "take reject_unverified_recipient out of "+list,
					"Postfix verifies recipients with its own probes, and postern does, too: each address is asked about twice")
			case r.Name == "permit" && i >= 0 && (guard < 0 || i < guard) && (list == "smtpd_relay_restrictions" || list == "smtpd_recipient_restrictions"):
				c.say(Error, "open-relay", c.where(of, list), "put reject_unauth_destination in front of permit in "+list,
					"\"permit\" stands in front of every restriction that refuses strangers who want to relay")
			}
		}
		if list == "smtpd_relay_restrictions" && guard < 0 && guarded(Restrictions(s.Value(of, "smtpd_recipient_restrictions"))) < 0 {
			c.say(Error, "open-relay", c.where(of, list), c.fix(of, list, "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination"),
				"neither smtpd_relay_restrictions nor smtpd_recipient_restrictions refuses strangers who want to relay")
		}
	}
	for context, in := range count {
		if len(in) > 1 {
			name := "postern"
			if context != "" {
				name += " (policy_context=" + context + ")"
			}
			c.say(Warning, "asked-often", of.Name+"/"+of.Type, "leave it in smtpd_recipient_restrictions", "%s is asked in %s: several times for each recipient", name, strings.Join(in, " and "))
		}
	}
	return asked
}

// permitsRelay reports whether a relay chain is asked who may relay.
func (c *checker) permitsRelay(of *Service) bool {
	return slices.ContainsFunc(Restrictions(c.s.Value(of, "smtpd_relay_restrictions")), func(r Restriction) bool {
		_, ours := doorOf(r.Arg, c.s.Queue(), c.o.Policy)
		return r.Name == "check_policy_service" && ours && slices.Contains(c.o.Relay, c.contextOf(of, &r))
	})
}

func (c *checker) contextOf(of *Service, r *Restriction) string {
	if v, ok := r.Options["policy_context"]; ok {
		return v
	}
	return c.s.Value(of, "smtpd_policy_service_policy_context")
}

// service looks at one place where postern is asked.
func (c *checker) service(of *Service, list string, r *Restriction, door Endpoint, at, guard int, all []Restriction) {
	s, o := c.s, c.o
	where := c.where(of, list)
	relay := slices.Contains(o.Relay, c.contextOf(of, r))
	switch {
	case relay && list != "smtpd_relay_restrictions":
		c.say(Error, "relay-chain-elsewhere", where, "move it to smtpd_relay_restrictions, in front of the last reject or defer_unauth_destination",
			"the chain %q may answer OK, which in %s skips all restrictions behind it", c.contextOf(of, r), list)
	case relay && !slices.ContainsFunc(all[at+1:], func(r Restriction) bool { return guards[r.Name] }):
		c.say(Error, "relay-chain-open", where, "put reject behind it", "nothing behind the chain %q refuses those whom it does not permit", c.contextOf(of, r))
	case !relay && list == "smtpd_recipient_restrictions" && (guard < 0 || at < guard) && !c.relayGuarded(of):
		c.say(Error, "policy-before-auth-destination", where, "put it behind reject_unauth_destination",
			"postern is asked about mail that strangers want to relay: recipients of others are verified and greylisted, for spammers who only try")
	case !relay && list == "smtpd_recipient_restrictions" && guard > at:
		c.say(Warning, "policy-before-auth-destination", where, "put it behind "+all[guard].Name, "postern is asked before %s", all[guard].Name)
	}
	action, set := r.Options["default_action"]
	if !set {
		action = s.Value(of, "smtpd_policy_service_default_action")
	}
	if !strings.EqualFold(strings.TrimSpace(action), "DUNNO") {
		c.say(Warning, "no-default-action", where, "check_policy_service { "+r.Arg+", timeout=25s, default_action=DUNNO }",
			"while postern is away, every client reads %q", action)
	}
	if limit, ok := seconds(c.option(of, r, "timeout", "smtpd_policy_service_timeout")); ok && limit <= o.Budget {
		c.say(Warning, "policy-timeout", where, fmt.Sprintf("timeout=%ds", int((o.Budget+5*time.Second).Seconds())),
			"Postfix waits %v and a chain may take %v: what takes long is answered by the default action", limit, o.Budget)
	}
	c.reachable(of, where, r.Arg, door)
}

// relayGuarded reports whether strangers who want to relay are refused before
// smtpd_recipient_restrictions is looked at.
func (c *checker) relayGuarded(of *Service) bool {
	return c.s.Value(of, "smtpd_relay_before_recipient_restrictions") == "yes" && guarded(Restrictions(c.s.Value(of, "smtpd_relay_restrictions"))) >= 0
}

func (c *checker) option(of *Service, r *Restriction, option, parameter string) string {
	if v, ok := r.Options[option]; ok {
		return v
	}
	return c.s.Value(of, parameter)
}

// reachable looks at the path of a socket.
func (c *checker) reachable(of *Service, where, text string, door Endpoint) {
	if door.Network != "unix" {
		return
	}
	queue := c.s.Queue()
	e, _ := parseEndpoint(text)
	if of.Chroot {
		if _, inside := within(queue, door.Path); !inside {
			c.say(Error, "socket-unreachable", where, "listen = [\"unix:"+filepath.Join(queue, "postern", filepath.Base(door.Path))+"\"], or tcp",
				"%s is outside of %s, and this smtpd sees nothing else (chroot y in master.cf)", door.Path, queue)
			return
		}
		if filepath.IsAbs(e.Path) && strings.HasPrefix(e.Path, queue) {
			c.say(Error, "socket-unreachable", where, "unix:"+strings.TrimPrefix(strings.TrimPrefix(e.Path, queue), "/"),
				"inside its chroot smtpd looks for %s below %s again; name it from there", e.Path, queue)
		}
	}
	st, err := os.Stat(door.Path)
	switch {
	case os.IsNotExist(err):
		c.say(Note, "socket-missing", where, "systemctl start postern.socket postern.service", "there is no socket %s now: is postern running?", door.Path)
	case err == nil && st.Mode()&os.ModeSocket == 0:
		c.say(Error, "socket-missing", where, "", "%s is not a socket", door.Path)
	case err == nil && st.Mode().Perm()&0o002 == 0:
		c.say(Warning, "socket-mode", where, "listen = [\"unix:"+door.Path+",mode=0666\"]", "%s has mode %v: Postfix's user must be able to write to it", door.Path, st.Mode().Perm())
	}
}

// others are services that postern replaces, by what names them.
var others = []struct{ sign, what string }{
	{":10023", "postgrey, which postern's greylist replaces"}, {"postgrey", "postgrey, which postern's greylist replaces"},
	{"policyd-spf", "policyd-spf, which postern's spf replaces"}, {"policy-spf", "policyd-spf, which postern's spf replaces"},
	{":12525", "policyd-weight, which postern's client and rbl replace"}, {":10031", "cbpolicyd, which postern's limit replaces"},
	{":10040", "postfwd or another policy service"}, {"sqlgrey", "sqlgrey, which postern's greylist replaces"}, {":2501", "sqlgrey, which postern's greylist replaces"},
	{"policyd-rate-limit", "policyd-rate-limit, which postern's limit replaces"},
}

func (c *checker) otherService(of *Service, list string, r *Restriction) {
	for _, o := range others {
		if !strings.Contains(r.Arg, o.sign) {
			continue
		}
		slug := "other-policy-service"
		if strings.Contains(o.what, "greylist") && c.o.Greylist {
			slug = "greylist-twice"
		}
		c.say(Warning, slug, c.where(of, list), "take check_policy_service "+r.Arg+" out of "+list, "%s is %s; both are asked", r.Arg, o.what)
		return
	}
	c.say(Note, "other-policy-service", c.where(of, list), "", "another policy service is asked, too: %s", r.Arg)
}

// otherMilters are those that postern replaces, by what names them.
var otherMilters = []struct{ sign, what string }{
	{"opendkim", "opendkim"}, {":8891", "opendkim"}, {":12301", "opendkim"}, {"opendmarc", "opendmarc"}, {":8893", "opendmarc"}, {"openarc", "openarc"},
	{"spfmilter", "an SPF milter"}, {"greylist", "milter-greylist"}, {":11332", "rspamd, whose greylisting, SPF, DKIM and DMARC postern has, too"},
}

// milters looks at the milters of a service, and reports whether postern is
// one of them.
func (c *checker) milters(of *Service) (ours bool) {
	s, o := c.s, c.o
	for _, m := range words(s.Value(of, "smtpd_milters")) {
		r := Restriction{Arg: m}
		r.options()
		door, is := doorOf(r.Arg, s.Queue(), o.Milter)
		where := c.where(of, "smtpd_milters")
		if !is {
			for _, other := range otherMilters {
				if strings.Contains(r.Arg, other.sign) {
					c.say(Warning, "other-milter", where, "take "+r.Arg+" out of smtpd_milters", "%s is %s; both look at each message", r.Arg, other.what)
					break
				}
			}
			continue
		}
		ours = true
		c.reachable(of, where, r.Arg, door)
		action := c.option(of, &r, "default_action", "milter_default_action")
		switch {
		case o.RelaysByContent && action == "accept":
			c.say(Error, "milter-default-action", where, "default_action=tempfail for this milter",
				"a provider's relaying depends on the content, and while postern is away content is accepted unseen: anybody in the provider's networks relays")
		case action == "shutdown" && !knowsShutdown(s.raw(nil, "mail_version")):
			c.say(Error, "milter-shutdown", where, "default_action=accept for this milter", "Postfix %s does not know shutdown: while postern is away, all mail is refused with 451 4.3.5", s.raw(nil, "mail_version"))
		case !o.RelaysByContent && action != "accept":
			c.say(Warning, "milter-default-action", where, "postconf -e 'milter_default_action = accept'", "while postern is away, no mail is accepted (milter_default_action = %s)", action)
		}
		if limit, ok := seconds(c.option(of, &r, "content_timeout", "milter_content_timeout")); ok && limit <= o.Content {
			c.say(Warning, "milter-timeout", where, fmt.Sprintf("content_timeout=%ds", int((o.Content+10*time.Second).Seconds())), "Postfix waits %v for a message, and looking may take %v", limit, o.Content)
		}
		if limit, ok := seconds(c.option(of, &r, "command_timeout", "milter_command_timeout")); ok && limit <= o.Budget {
			c.say(Warning, "milter-timeout", where, fmt.Sprintf("command_timeout=%ds", int((o.Budget+10*time.Second).Seconds())), "Postfix waits %v for a command, and a chain may take %v", limit, o.Budget)
		}
		if s.Value(nil, "content_filter") != "" && c.reinjects(of) {
			c.say(Warning, "filter-twice", of.Name+"/"+of.Type, fmt.Sprintf("postconf -P '%s/%s/smtpd_milters=' '%s/%s/receive_override_options=no_milters'", of.Name, of.Type, of.Name, of.Type),
				"mail that comes back from the content filter is looked at a second time, as from 127.0.0.1")
		}
	}
	return ours
}

// knowsShutdown reports whether a release of Postfix has the default action
// "shutdown" for milters: 3.11, 3.10.8, 3.9.9, 3.8.15, 3.7.20 and later ones of each
// (postconf(5)). One that is not known has.
func knowsShutdown(version string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); n < 2 { // a snapshot, "3.11-20250101", has two
		return true
	}
	first := map[int]int{7: 20, 8: 15, 9: 9, 10: 8}
	from, ok := first[minor]
	return major > 3 || major == 3 && (minor > 10 || ok && patch >= from)
}

// reinjects reports whether a service takes mail back from a content filter:
// it listens on loopback and has no filter itself.
func (c *checker) reinjects(of *Service) bool {
	v, own := of.Set["content_filter"]
	host, _, err := net.SplitHostPort(of.Name)
	return own && v == "" && err == nil && loopback(host)
}

func milterText(e Endpoint, queue string) string {
	text, _ := e.Postfix(queue, true)
	return "{ " + text + ", default_action=accept }"
}

// seconds reads a time of Postfix's (postconf(5): a number and s, m, h, d or
// w).
func seconds(text string) (time.Duration, bool) {
	unit := time.Second
	if text == "" {
		return 0, false
	}
	if u, ok := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}[text[len(text)-1]]; ok {
		unit, text = u, text[:len(text)-1]
	}
	n, err := strconv.ParseUint(text, 10, 31)
	return time.Duration(n) * unit, err == nil
}

// main looks at single parameters of main.cf.
func (c *checker) main() {
	s, o := c.s, c.o
	if s.Value(nil, "smtpd_delay_reject") == "no" {
		c.say(Warning, "delay-reject", "smtpd_delay_reject", "postconf -e 'smtpd_delay_reject = yes'",
			"clients are refused before they name sender and recipient: the log does not say whose mail it was, and exceptions by recipient do not work")
	}
	if s.Value(nil, "smtpd_peername_lookup") == "no" {
		c.say(Warning, "peername-lookup", "smtpd_peername_lookup", "postconf -e 'smtpd_peername_lookup = yes'", "Postfix does not look up clients' names: allow lists by name, greylisting by organisation and checks of the reverse name have none")
	}
	if s.Value(nil, "soft_bounce") == "yes" {
		c.say(Warning, "soft-bounce", "soft_bounce", "postconf -e 'soft_bounce = no'", "every refusal becomes \"try again later\": senders come back for days")
	}
	if o.RBL {
		for _, site := range words(s.Value(nil, "postscreen_dnsbl_sites")) {
			zone, _, _ := strings.Cut(site, "=")
			zone, _, _ = strings.Cut(zone, "*")
			if slices.Contains(o.RBLZones, strings.ToLower(zone)) {
				c.say(Note, "rbl-twice", "postscreen_dnsbl_sites", "", "postscreen and postern both ask %s; the second answer comes from a cache", zone)
			}
		}
	}
	if o.Signs && !strings.Contains(s.Value(nil, "non_smtpd_milters"), "smtpd_milters") && !c.ourMilter(s.Value(nil, "non_smtpd_milters")) && len(o.Milter) > 0 {
		c.say(Warning, "unsigned-local", "non_smtpd_milters", "postconf -e 'non_smtpd_milters = $smtpd_milters' 'internal_mail_filter_classes = bounce'", "mail of this host itself (sendmail command, cron, bounces) is not signed")
	}
	if n, err := strconv.Atoi(s.Value(nil, "default_process_limit")); err == nil && o.MaxConnections > 0 && n*len(s.SMTPD()) > o.MaxConnections {
		c.say(Warning, "connections", "default_process_limit", fmt.Sprintf("[policy] max_connections = %d", n*len(s.SMTPD())), "up to %d smtpd processes ask, and the policy door takes %d connections", n*len(s.SMTPD()), o.MaxConnections)
	}
	c.release()
}

func (c *checker) ourMilter(list string) bool {
	for _, m := range words(list) {
		r := Restriction{Arg: m}
		r.options()
		if _, ok := doorOf(r.Arg, c.s.Queue(), c.o.Milter); ok {
			return true
		}
	}
	return false
}

// release looks at what newer releases of Postfix do by default.
func (c *checker) release() {
	s := c.s
	version := s.raw(nil, "mail_version")
	if version == "" {
		return
	}
	if _, known := s.Defaults["smtpd_forbid_bare_newline"]; known || len(s.Defaults) > 0 {
		if v := s.Value(nil, "smtpd_forbid_bare_newline"); known && v == "no" {
			c.say(Warning, "bare-newline", "smtpd_forbid_bare_newline", "postconf -e 'smtpd_forbid_bare_newline = normalize'",
				"lines that end in LF alone can hide a second message in a first one (SMTP smuggling): it would come past all checks of the envelope")
		}
		if v := s.Value(nil, "smtpd_forbid_unauth_pipelining"); v == "no" {
			c.say(Note, "unauth-pipelining", "smtpd_forbid_unauth_pipelining", "postconf -e 'smtpd_forbid_unauth_pipelining = yes'", "clients that talk before it is their turn are not refused; Postfix 3.9 does so by default")
		}
		if !known {
			c.say(Note, "bare-newline", "mail_version", "", "Postfix %s knows no smtpd_forbid_bare_newline: SMTP smuggling is possible; releases from 3.5.23, 3.6.13, 3.7.9 and 3.8.4 on do", version)
		}
	}
}

// networks looks at mynetworks.
func (c *checker) networks() {
	s := c.s
	if !s.IsSet(nil, "mynetworks") {
		if style := s.Value(nil, "mynetworks_style"); style == "class" || style == "subnet" {
			c.say(Warning, "mynetworks-wide", "mynetworks_style", "postconf -e 'mynetworks_style = host'", "mynetworks_style = %s lets all neighbours of this host's addresses relay", style)
		}
		return
	}
	for _, word := range words(s.Value(nil, "mynetworks")) {
		p, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(word))
		if err != nil {
			continue // a table, an address, or what Postfix itself complains of
		}
		private := p.Addr().IsPrivate() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast()
		least := 16
		if p.Addr().Is6() {
			least = 32
		}
		switch {
		case p.Bits() == 0:
			c.say(Error, "mynetworks-wide", "mynetworks", "take "+word+" out of mynetworks", "%s is everybody: an open relay", word)
		case !private && p.Bits() < least:
			c.say(Error, "mynetworks-wide", "mynetworks", "name your own networks", "%s is more than one site has: strangers in it relay, and postern leaves them alone", word)
		}
	}
}

// names looks at the names that this host goes by.
func (c *checker) names() {
	for _, name := range []string{"myhostname", "smtp_helo_name"} {
		v := strings.ToLower(strings.TrimSuffix(c.s.Value(nil, name), "."))
		if strings.HasPrefix(v, "localhost") || !strings.Contains(v, ".") && v != "" {
			c.say(Warning, "helo-name", name, "postconf -e '"+name+" = mx.example.org'", "this host says %q in HELO, which others refuse: it must be a full name that leads to its address and back", v)
			return
		}
	}
	if h := strings.ToLower(c.o.Hostname); h != "" && h != strings.ToLower(c.s.Value(nil, "myhostname")) {
		c.say(Note, "hostname", "myhostname", "", "postern calls itself %s (hostname), Postfix %s", h, c.s.Value(nil, "myhostname"))
	}
}

// hops looks for mail that goes round.
func (c *checker) hops() {
	s := c.s
	self := []string{strings.ToLower(s.Value(nil, "myhostname")), "localhost", "127.0.0.1", "::1"}
	for _, addr := range words(s.Value(nil, "inet_interfaces")) {
		if ip := net.ParseIP(addr); ip != nil {
			self = append(self, ip.String())
		}
	}
	own := func(host, port string) bool {
		if port != "" && port != "25" && port != "smtp" {
			return false
		}
		return slices.Contains(self, strings.ToLower(strings.Trim(host, "[]")))
	}
	for _, name := range []string{"relayhost", "default_transport", "relay_transport", "local_transport", "virtual_transport", "fallback_relay", "smtp_fallback_relay"} {
		for _, hop := range words(s.Value(nil, name)) {
			for _, kind := range []string{"smtp:", "relay:"} {
				hop = strings.TrimPrefix(hop, kind)
			}
			host, port := splitHop(hop)
			if host != "" && own(host, port) {
				c.say(Error, "loop", name, "", "%s = %s is this host itself: mail goes round until Postfix gives up", name, hop)
			}
		}
	}
	for _, hop := range c.o.Hops {
		if host, port := splitHop(hop); own(host, port) {
			c.say(Error, "loop", "verify.route next_hop", "", "recipients are verified at %s, which is this host itself: the probe asks postern again", hop)
		}
	}
}

// splitHop takes "[host]:port", "host:port" or "host" apart.
func splitHop(hop string) (host, port string) {
	if rest, ok := strings.CutPrefix(hop, "["); ok {
		host, rest, _ = strings.Cut(rest, "]")
		return host, strings.TrimPrefix(rest, ":")
	}
	if strings.Count(hop, ":") == 1 {
		host, port, _ = strings.Cut(hop, ":")
		return host, port
	}
	return hop, ""
}

// recipients looks for domains that are relayed for whoever is named.
func (c *checker) recipients() {
	s, o := c.s, c.o
	if s.Value(nil, "relay_recipient_maps") != "" {
		return
	}
	for _, d := range words(s.Value(nil, "relay_domains")) {
		if strings.ContainsAny(d, ":/$") || d == s.Value(nil, "myhostname") {
			continue // a table: its domains are not known here
		}
		if !slices.ContainsFunc(o.Domains, func(of string) bool {
			of = strings.ToLower(of)
			return of == "*" || of == strings.ToLower(d) || strings.HasPrefix(of, ".") && strings.HasSuffix(strings.ToLower(d), of)
		}) {
			c.say(Warning, "unverified-recipients", "relay_domains", "[[verify.route]] domains = [\""+d+"\"]",
				"mail to any address of %s is accepted: what the next hop refuses is bounced to forged senders", d)
		}
	}
}
