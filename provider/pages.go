package provider

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"postern/internal/adminapi"
	"postern/internal/page"
)

// Pages are what the console shows of the lists.
func (*Set) Pages() []page.Page {
	return []page.Page{
		{Name: "providers", Title: "Providers", Group: "Checks", Show: showProviders, Actions: []page.Action{{Name: "refresh", Do: refresh}}},
		{Name: "provider", Title: "Provider", Under: "providers", Show: showProvider, Actions: []page.Action{
			{Name: "refresh", Do: refresh},
			{Name: "accept", Do: func(ctx context.Context, a *page.Ask) (*page.Done, error) {
				rep, err := Admin{a.Client}.Accept(ctx, a.Get("name"), a.Get("id"))
				if err != nil {
					return nil, err
				}
				return &page.Done{Text: fmt.Sprintf("%s has %d networks now.", a.Get("name"), rep.Networks), Before: networks(rep.Removed), After: networks(rep.Added)}, nil
			}},
		}},
	}
}

func refresh(ctx context.Context, a *page.Ask) (*page.Done, error) {
	rep, err := Admin{a.Client}.Refresh(ctx, a.Get("name"), false)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("The records of %s were read: %s.", a.Get("name"), rep.Result)
	if rep.Error != "" {
		text += " " + rep.Error
	}
	if len(rep.Reasons) > 0 {
		text += " " + strings.Join(rep.Reasons, "; ") + "."
	}
	return &page.Done{Text: text, Before: networks(rep.Removed), After: networks(rep.Added)}, nil
}

// networks is a list of networks for the audit log.
func networks(all []netip.Prefix) string {
	const most = 50
	var out []string
	for _, p := range all[:min(most, len(all))] {
		out = append(out, p.String())
	}
	if len(all) > most {
		out = append(out, fmt.Sprintf("and %d more", len(all)-most))
	}
	return strings.Join(out, " ")
}

func showProviders(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Allow lists that grow from large senders' SPF records, read again and again. An update that changes too much waits for you."}
	ip := strings.TrimSpace(a.Get("ip"))
	v.Add(page.Form{Title: "Whose is an address?", Submit: "Look", Fields: []page.Field{{Name: "ip", Label: "Address", Value: ip, Required: true, Placeholder: "192.0.2.7"}}})
	if ip != "" {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return v, fmt.Errorf("%q is not an IP address", ip)
		}
		found, err := Admin{a.Client}.Whois(ctx, addr)
		if err != nil {
			return v, err
		}
		t := page.Table{Title: addr.String(), Columns: []string{"List", "Network", "Term", "Record", "Since"}, Empty: "No list holds it."}
		for _, m := range found {
			record := page.Code(m.Record)
			record.Note = m.Via
			t.Add(page.Cell{Text: m.List, Href: page.Link("provider", "name", m.List)}, page.Code(m.Prefix.String()), page.Code(m.Term), record, page.At(m.Since))
		}
		v.Add(t)
	}
	all, err := Admin{a.Client}.Lists(ctx)
	t := page.Table{Title: "Lists", Columns: []string{"List", "State", "Networks", "Read", "Changed", "Next", ""}, Empty: "There is no list: [[provider.list]]."}
	for i := range all {
		st := &all[i]
		if st.Refused != nil {
			v.Add(page.Notice{Tone: page.Warn, Text: fmt.Sprintf("An update of %s waits for you: %s (%d networks more, %d fewer).", st.Name, strings.Join(st.Refused.Reasons, "; "), st.Refused.Added, st.Refused.Removed)})
		}
		name := page.Cell{Text: st.Name, Href: page.Link("provider", "name", st.Name), Note: strings.Join(append(st.Domains, st.Files...), ", ")}
		count := page.N(st.Networks)
		count.Note = fmt.Sprintf("%d IPv4, %d IPv6", st.IPv4, st.IPv6)
		t.Add(name, stateOf(st), count, page.At(st.Checked), page.At(st.Changed), page.At(st.Next),
			page.Cell{Buttons: []page.Button{{Page: "providers", Action: "refresh", Label: "Read now", Values: page.Values("name", st.Name)}}})
	}
	v.Add(t)
	return v, err
}

func stateOf(st *Status) page.Cell {
	c := page.State(page.Good, "in force")
	switch {
	case !st.Ready:
		c = page.State(page.Bad, "no list yet")
	case st.Refused != nil:
		c = page.State(page.Warn, "update refused")
	case st.Stale:
		c = page.State(page.Warn, "stale")
	}
	if st.Error != "" {
		c.Note = fmt.Sprintf("%d failures in a row: %s", st.Failures, st.Error)
		if c.Tone == page.Good {
			c.Tone = page.Warn
		}
	}
	if st.FileFault != "" {
		c.Tone, c.Note = page.Warn, "file not taken: "+st.FileFault
	}
	return c
}

// shownNetworks is how many a page has.
const shownNetworks = 500

func showProvider(ctx context.Context, a *page.Ask) (*page.View, error) {
	name := a.Get("name")
	s, err := Admin{a.Client}.Show(ctx, name)
	if err != nil {
		return nil, err
	}
	diff, err := Admin{a.Client}.Diff(ctx, name)
	if err != nil {
		return nil, err
	}
	v := &page.View{Title: name, Intro: strings.Join(append(s.Status.Domains, s.Status.Files...), ", ")}
	var prefixes []netip.Prefix
	for _, e := range s.Entries {
		prefixes = append(prefixes, e.Prefix)
	}
	if p := diff.Pending; p != nil {
		v.Add(page.Notice{Tone: page.Warn, Text: "An update waits for you since " + adminapi.Ago(a.Now, p.Time) + ": " + strings.Join(p.Reasons, "; ") + ".", Buttons: []page.Button{{
			Action: "accept", Label: "Accept it", Values: page.Values("name", name, "id", p.ID),
			Confirm: fmt.Sprintf("Accept the update %s of %s: %d networks more, %d fewer?", p.ID, name, len(diff.Added), len(diff.Removed)),
		}}})
		t := page.Table{Title: "What it would change", Columns: []string{"In force, and gone with it", "New with it"}}
		for i := range max(len(diff.Added), len(diff.Removed)) {
			gone, come := page.Cell{}, page.Cell{}
			if i < len(diff.Removed) {
				gone = page.Cell{Text: "− " + diff.Removed[i].String(), Code: true, Tone: page.Bad}
			}
			if i < len(diff.Added) {
				come = page.Cell{Text: "+ " + diff.Added[i].String(), Code: true, Tone: page.Good}
			}
			if i == shownNetworks {
				t.More = "There are more: `postern provider diff`."
				break
			}
			t.Add(gone, come)
		}
		v.Add(t)
	}
	f := page.Facts{}
	f.AddCell("State", stateOf(&s.Status))
	f.Add("Networks", fmt.Sprintf("%d (%d IPv4, %d IPv6)", s.Status.Networks, s.Status.IPv4, s.Status.IPv6))
	f.AddCell("Read", page.At(s.Status.Checked))
	f.AddCell("Changed", page.At(s.Status.Changed))
	f.AddCell("Next", page.At(s.Status.Next))
	f.Add("Version", s.Status.ID)
	for _, p := range s.Status.Problems {
		f.AddCell("Problem", page.Cell{Text: p.String(), Tone: page.Warn})
	}
	v.Add(f, page.Networks{Title: "Among all addresses", Prefixes: prefixes, Mark: diff.Added})
	t := page.Table{Title: "Networks", Columns: []string{"Network", "Term", "Record", "Since"}}
	for i, e := range s.Entries {
		if i == shownNetworks {
			t.More = fmt.Sprintf("%d more are left out.", len(s.Entries)-i)
			break
		}
		record := page.Code(e.Record)
		record.Note = e.Via
		t.Add(page.Code(e.Prefix.String()), page.Code(e.Term), record, page.At(e.Since))
	}
	h := page.Table{Title: "History", Columns: []string{"When", "How", "More", "Fewer", "Version"}, Empty: "It has not changed."}
	for i := len(s.History) - 1; i >= 0; i-- {
		c := &s.History[i]
		more, fewer := page.N(c.AddedCount), page.N(c.RemovedCount)
		more.Note, fewer.Note = networks(c.Added[:min(3, len(c.Added))]), networks(c.Removed[:min(3, len(c.Removed))])
		h.Add(page.At(c.Time), page.T("%s", fmt.Sprint(c.How)), more, fewer, page.Code(c.ID))
	}
	v.Add(h, t)
	if len(s.Records) > 0 {
		r := page.Table{Title: "Records", Columns: []string{"Domain", "Record", "TTL"}}
		for _, one := range s.Records {
			r.Add(page.Code(one.Domain), page.Code(one.Text), page.T("%s", one.TTL.String()))
		}
		v.Add(r)
	}
	v.Add(page.Actions{{Action: "refresh", Label: "Read the records now", Values: page.Values("name", name)}})
	return v, nil
}
