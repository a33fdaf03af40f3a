package postfix

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Change is a parameter of main.cf with the value that postern needs.
type Change struct {
	Name string `json:"name"`
	// Old is what it is now, as it stands in main.cf or as the default is.
	Old string `json:"old"`
	New string `json:"new"`
	Why string `json:"why"`
}

// Plan says what is to be changed so that Postfix asks postern, and leaves all
// else as it is; nothing where it asks already. An error says what has to be changed
// in postern's own configuration first.
func Plan(s *Setup, o *Ours) ([]Change, error) {
	p := planner{s: s, o: o, queue: s.Queue()}
	for _, of := range s.SMTPD() {
		p.chroot = p.chroot || of.Chroot
	}
	if len(s.SMTPD()) == 0 {
		p.chroot = true // as on Debian
	}
	var err error
	if p.policy, err = p.pick("policy", o.Policy); err != nil {
		return nil, err
	}
	p.relay()
	p.recipients()
	p.data()
	if o.LooksAtContent {
		if err := p.milter(); err != nil {
			return nil, err
		}
	}
	return p.out, nil
}

type planner struct {
	s      *Setup
	o      *Ours
	queue  string
	chroot bool
	policy string // the door as Postfix names it
	out    []Change
}

// pick returns a door as smtpd can reach it.
func (p *planner) pick(name string, doors []Endpoint) (string, error) {
	text, ok := reachableText(doors, p.queue, p.chroot)
	if ok {
		return text, nil
	}
	if len(doors) == 0 {
		return "", fmt.Errorf("the %s door is closed: set %s.listen", name, name)
	}
	return "", fmt.Errorf("smtpd runs in a chroot and reaches nothing outside of %s: set %s.listen to \"unix:%s/postern/%s.sock\" or a tcp address", p.queue, name, p.queue, name)
}

// reachableText is the first door that smtpd can reach, sockets first.
func reachableText(doors []Endpoint, queue string, chroot bool) (string, bool) {
	for _, unix := range []bool{true, false} {
		for _, d := range doors {
			if text, ok := d.Postfix(queue, chroot); ok && (d.Network == "unix") == unix {
				return text, true
			}
		}
	}
	return "", false
}

// service is a restriction that asks the policy door.
func (p *planner) service(context string) string {
	text := fmt.Sprintf("check_policy_service { %s, timeout=%ds, default_action=DUNNO", p.policy, int((p.o.Budget + 5*time.Second).Seconds()))
	if context != "" {
		text += ", policy_context=" + context
	}
	return text + " }"
}

// asks reports whether a list asks the policy door for a context.
func (p *planner) asks(list []Restriction, context string) bool {
	return slices.ContainsFunc(list, func(r Restriction) bool {
		_, ours := doorOf(r.Arg, p.queue, p.o.Policy)
		return r.Name == "check_policy_service" && ours && r.Options["policy_context"] == context
	})
}

// current is a list as it stands, and with its names expanded: a change keeps
// what the operator has written.
func (p *planner) current(name string) (raw, expanded []Restriction) {
	return Restrictions(p.s.raw(nil, name)), Restrictions(p.s.Value(nil, name))
}

func (p *planner) change(name string, list []string, why string) {
	p.set(name, strings.Join(list, ", "), why)
}

func (p *planner) set(name, value, why string) {
	if old := p.s.raw(nil, name); old != value {
		p.out = append(p.out, Change{name, old, value, why})
	}
}

func texts(list []Restriction) (out []string) {
	for i := range list {
		out = append(out, list[i].Text)
	}
	return out
}

// relay has each relay chain asked in front of what refuses strangers.
func (p *planner) relay() {
	const name = "smtpd_relay_restrictions"
	raw, expanded := p.current(name)
	list := texts(raw)
	changed := false
	for _, context := range p.o.Relay {
		if p.asks(expanded, context) {
			continue
		}
		changed = true
		at := len(list)
		for i := len(raw) - 1; i >= 0; i-- {
			if guards[raw[i].Name] {
				at = i
				break
			}
		}
		var add []string
		if !slices.Contains(list, "permit_auth_destination") {
			add = append(add, "permit_auth_destination")
		}
		add = append(add, p.service(context))
		if at == len(list) {
			add = append(add, "reject")
		}
		list = slices.Insert(list, at, add...)
		raw = Restrictions(strings.Join(list, ", "))
	}
	if changed {
		p.change(name, list, "the relay chain says who may relay, in front of what refuses the others")
	}
}

// recipients has strangers' mail to our recipients judged, behind what refuses
// mail for others.
func (p *planner) recipients() {
	const name = "smtpd_recipient_restrictions"
	raw, expanded := p.current(name)
	list := texts(raw)
	why := "postern judges mail of strangers to your recipients"
	relays := len(p.o.Relay) > 0
	if relays {
		p.set("smtpd_relay_before_recipient_restrictions", "yes", "who may relay is said first")
		// It would refuse what the relay chain has permitted.
		before := len(list)
		if list = slices.DeleteFunc(list, unauth); len(list) < before {
			why += "; who may relay is said in smtpd_relay_restrictions"
		}
	}
	if p.asks(expanded, "") {
		if relays && len(list) < len(raw) {
			p.change(name, list, "who may relay is said in smtpd_relay_restrictions")
		}
		return
	}
	switch {
	case len(raw) == 0 && relays:
		list = []string{"permit_mynetworks", "permit_sasl_authenticated", "reject_unlisted_recipient"}
	case len(raw) == 0:
		list = []string{"permit_mynetworks", "permit_sasl_authenticated", "reject_unauth_destination", "reject_unlisted_recipient"}
	case !relays && guarded(expanded) < 0:
		list = append(list, "reject_unauth_destination")
	}
	at := len(list)
	for at > 0 && (list[at-1] == "permit" || list[at-1] == "reject" || list[at-1] == "defer") {
		at--
	}
	p.change(name, slices.Insert(list, at, p.service("")), why)
}

// unauth reports whether a restriction refuses mail for others.
func unauth(name string) bool {
	return name == "reject_unauth_destination" || name == "defer_unauth_destination"
}

// data has postern asked once a message, for what is judged then.
func (p *planner) data() {
	const name = "smtpd_data_restrictions"
	raw, expanded := p.current(name)
	if p.asks(expanded, "") {
		return
	}
	list := texts(raw)
	if len(list) == 0 {
		list = []string{"permit_mynetworks", "permit_sasl_authenticated"}
	}
	p.change(name, append(list, p.service("")), "mail without a sender is judged at DATA, so that address verification by others goes on")
}

func (p *planner) milter() error {
	ref, err := p.pick("milter", p.o.Milter)
	if err != nil {
		return err
	}
	now := p.s.Value(nil, "smtpd_milters")
	c := checker{s: p.s, o: p.o}
	if !c.ourMilter(now) {
		action := "accept"
		if p.o.RelaysByContent {
			action = "tempfail"
		}
		value := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(p.s.raw(nil, "smtpd_milters")), ","))
		if value != "" {
			value += ", "
		}
		p.set("smtpd_milters", value+"{ "+ref+", default_action="+action+" }", "messages are shown to postern: header rules, authentication, signing")
	}
	if local := p.s.raw(nil, "non_smtpd_milters"); p.o.Signs && !c.ourMilter(p.s.Value(nil, "non_smtpd_milters")) && !strings.Contains(local, "smtpd_milters") {
		value := "$smtpd_milters"
		if local != "" {
			value = local + ", " + value
		}
		p.set("non_smtpd_milters", value, "mail of this host itself is signed, too")
		if p.s.raw(nil, "internal_mail_filter_classes") == "" {
			p.set("internal_mail_filter_classes", "bounce", "and bounces")
		}
	}
	return nil
}

// MainCF writes changes as they stand in main.cf.
func MainCF(changes []Change) string {
	var b strings.Builder
	for i, c := range changes {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("# " + c.Why + "\n" + c.Name + " =")
		if words := listed(c); len(words) > 1 {
			for j, w := range words {
				b.WriteString("\n    " + w)
				if j < len(words)-1 {
					b.WriteByte(',')
				}
			}
		} else {
			b.WriteString(" " + c.New)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// listed are the parts of a value that is a list.
func listed(c Change) []string {
	if strings.HasSuffix(c.Name, "_restrictions") {
		return texts(Restrictions(c.New))
	}
	return words(c.New)
}

// Commands writes changes as commands of postconf, quoted for a shell.
func Commands(changes []Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString("postconf -e '" + strings.ReplaceAll(c.assignment(), "'", `'\''`) + "'\n")
	}
	return b.String()
}

func (c *Change) assignment() string { return c.Name + " = " + c.New }

// Diff writes changes as differences by words.
func Diff(changes []Change) string {
	var b strings.Builder
	for _, c := range changes {
		before, after := listed(Change{Name: c.Name, New: c.Old}), listed(c)
		b.WriteString(c.Name + "  (" + c.Why + ")\n")
		for _, w := range before {
			if !slices.Contains(after, w) {
				b.WriteString("  - " + w + "\n")
			}
		}
		for _, w := range after {
			sign := "  + "
			if slices.Contains(before, w) {
				sign = "    "
			}
			b.WriteString(sign + w + "\n")
		}
	}
	return b.String()
}
