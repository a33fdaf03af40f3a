package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/internal/adminapi"
	"postern/internal/page"
	"postern/policy"
)

// Pages are what the console shows of the whole daemon.
func Pages() []page.Page {
	return []page.Page{
		{Name: "overview", Title: "Overview", Group: "Mail", Show: showOverview, Actions: []page.Action{
			{Name: "reload", Role: page.RoleAdmin, Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
				if err := (Client{a.Client}).Reload(ctx); err != nil {
					return nil, fmt.Errorf("the configuration that was there stays in force: %w", err)
				}
				return &page.Done{Text: "The configuration was read again, and is in force."}, nil
			}},
		}},
		{Name: "what-if", Title: "What if", Group: "Mail", Show: showWhatIf},
	}
}

// loud is how the status says that something needs a hand.
var loud = regexp.MustCompile(`\b[A-Z]{4,}( [A-Z]{2,})+\b|\b(STALE|OPEN|DOWN|FAILED|REFUSED)\b`)

func showOverview(ctx context.Context, a *page.Ask) (*page.View, error) {
	raw, err := Client{a.Client}.Status(ctx)
	if err != nil {
		return nil, err
	}
	var st Status
	if err := json.Unmarshal(raw, &st); err != nil {
		return nil, fmt.Errorf("the status cannot be read: %w", err)
	}
	text, err := Client{a.Client}.StatusText(ctx)
	if err != nil {
		return nil, err
	}
	parts := statusParts(text)
	v := &page.View{}
	reload := page.Button{Action: "reload", Label: "Reload"}
	if st.Config.Fault != "" {
		v.Add(page.Notice{Tone: page.Bad, Text: "The changed configuration was refused " + adminapi.Ago(a.Now, st.Config.FaultAt) + " ago. The one before stays in force.",
			Lines: strings.Split(strings.TrimSpace(st.Config.Fault), "\n"), Buttons: []page.Button{reload}})
	}
	if len(st.Config.Restarts) > 0 {
		v.Add(page.Notice{Tone: page.Warn, Text: "Changed settings wait for a restart of the daemon: " + strings.Join(st.Config.Restarts, ", ") + "."})
	}
	if st.Mode != policy.Enforce {
		v.Add(page.Notice{Tone: page.Warn, Text: "The whole daemon is in " + st.Mode.String() + " mode: nothing is refused."})
	}
	var hands []string
	for _, p := range parts {
		for _, line := range p.lines {
			if loud.MatchString(line) {
				hands = append(hands, p.name+": "+line)
			}
		}
	}
	hands = append(hands, st.Warnings...)
	if len(hands) > 0 {
		v.Add(page.Notice{Tone: page.Warn, Text: "This needs a hand:", Lines: hands})
	}
	v.Add(page.Tiles{
		{Name: "Running for", Value: adminapi.Ago(a.Now, st.Started), Note: "postern " + st.Version},
		{Name: "Mode", Value: st.Mode.String(), Tone: toneOf(st.Mode)},
		{Name: "Configuration read", Value: adminapi.Ago(a.Now, st.Config.Loaded) + " ago", Note: st.Config.Path},
		{Name: "Needs a hand", Value: fmt.Sprint(len(hands) + min(len(st.Config.Fault), 1)), Tone: handsTone(len(hands), st.Config.Fault)},
	})
	chains := page.Table{Title: "Chains", Note: "The checks in the order in which they are asked.", Columns: []string{"Chain", "Checks", "Only watched"}}
	for _, name := range slices.Sorted(maps.Keys(st.Chains)) {
		var all, shadow []string
		for _, c := range st.Chains[name] {
			if c.Mode == policy.Off {
				continue
			}
			all = append(all, c.Check)
			if c.Mode == policy.Shadow {
				shadow = append(shadow, c.Check)
			}
		}
		watched := page.Cell{Text: "none", Tone: page.Quiet}
		if len(shadow) > 0 {
			watched = page.Cell{Text: strings.Join(shadow, ", "), Tone: page.Warn}
		}
		chains.Add(page.T("%s", name), page.T("%s", strings.Join(all, " → ")), watched)
	}
	v.Add(chains)
	t := page.Table{Title: "Parts", Columns: []string{"Part", "How it is"}}
	for _, p := range parts {
		for i, line := range p.lines {
			c := page.T("%s", line)
			if loud.MatchString(line) {
				c.Tone = page.Warn
			}
			name := ""
			if i == 0 {
				name = p.name
			}
			t.Add(page.T("%s", name), c)
		}
	}
	v.Add(t, page.Actions{reload})
	return v, nil
}

func toneOf(m policy.Mode) page.Tone {
	if m == policy.Enforce {
		return page.Good
	}
	return page.Warn
}

func handsTone(n int, fault string) page.Tone {
	switch {
	case fault != "":
		return page.Bad
	case n > 0:
		return page.Warn
	}
	return page.Good
}

// statusPart are the lines of one part in the status.
type statusPart struct {
	name  string
	lines []string
}

// statusParts reads the status for people: see [adminapi.Status]. What stands in
// it of the whole daemon is left out.
func statusParts(text string) (out []statusPart) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	skip := map[string]bool{"config": true, "chain": true, "warning": true}
	taken := false
	for _, line := range lines[min(1, len(lines)):] {
		if len(line) < 10 {
			continue
		}
		name, rest := strings.TrimSpace(line[:10]), strings.TrimSpace(line[10:])
		if name != "" {
			if taken = !skip[name]; taken && (len(out) == 0 || out[len(out)-1].name != name) {
				out = append(out, statusPart{name: name})
			}
		}
		if taken && rest != "" {
			out[len(out)-1].lines = append(out[len(out)-1].lines, rest)
		}
	}
	return out
}

func showWhatIf(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "What would be decided now, step by step. It changes nothing: no entry is written, nothing is counted."}
	q := Question{
		Client: strings.TrimSpace(a.Get("client")), ClientName: a.Get("client_name"), Reverse: a.Get("reverse_name"), Helo: a.Get("helo"), Sender: a.Get("sender"),
		Recipient: a.Get("recipient"), Stage: a.Get("stage"), Context: a.Get("policy_context"), Login: a.Get("login"),
	}
	contexts := page.Choices("as Postfix asks")
	if raw, err := (Client{a.Client}).Status(ctx); err == nil {
		var st Status
		if json.Unmarshal(raw, &st) == nil {
			contexts = page.Choices("as Postfix asks", slices.Sorted(maps.Keys(st.Chains))...)
		}
	}
	v.Add(page.Form{Submit: "Try it", Fields: []page.Field{
		{Name: "client", Label: "Client", Value: q.Client, Required: true, Placeholder: "192.0.2.7", Hint: "Its IP address."},
		{Name: "helo", Label: "HELO", Value: q.Helo, Hint: "Left out: the address in brackets."},
		{Name: "sender", Label: "Sender", Value: q.Sender, Placeholder: "a@example.org", Hint: "Left out: the null sender."},
		{Name: "recipient", Label: "Recipient", Value: q.Recipient, Placeholder: "b@example.com"},
		{Name: "client_name", Label: "Verified name of the client", Value: q.ClientName, Hint: "Left out: looked up as Postfix does."},
		{Name: "reverse_name", Label: "Reverse name", Value: q.Reverse},
		{Name: "login", Label: "Login", Value: q.Login},
		{Name: "policy_context", Label: "Chain", Value: q.Context, Type: "select", Choices: contexts},
		{Name: "stage", Label: "Stage", Value: q.Stage, Type: "select", Choices: page.Choices("RCPT", "connect", "helo", "mail", "data", "end-of-message", "vrfy", "etrn")},
	}})
	if q.Client == "" {
		return v, nil
	}
	if addr, err := netip.ParseAddr(q.Client); err == nil && q.Helo == "" {
		q.Helo = "[" + addr.String() + "]"
		if addr.Is6() && !addr.Is4In6() {
			q.Helo = "[IPv6:" + addr.String() + "]"
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d, err := Client{a.Client}.Explain(ctx, q)
	if err != nil {
		return v, err
	}
	v.Add(page.Trace(d)...)
	return v, nil
}
