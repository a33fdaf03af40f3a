package dmarcreport

import (
	"context"
	"fmt"
	"strings"
	"time"

	"postern/internal/page"
)

// Pages are what the console shows of the reports.
func (*Reporter) Pages() []page.Page {
	return []page.Page{
		{Name: "dmarc", Title: "DMARC reports", Group: "Authentication", Show: showReports, Actions: []page.Action{{Name: "send", Do: sendReport}}},
		{Name: "dmarc-report", Title: "DMARC report", Under: "dmarc", Show: showReport},
	}
}

func sendReport(ctx context.Context, a *page.Ask) (*page.Done, error) {
	all, err := Admin{a.Client}.Send(ctx, Request{Day: a.Get("day"), Domain: a.Get("domain"), DryRun: a.Get("dry") == "true", Again: a.Get("again") == "true"})
	if err != nil {
		return nil, err
	}
	var texts []string
	for i := range all {
		one := &all[i]
		text := one.Domain + ": " + one.State
		if a.Get("dry") == "true" {
			text = fmt.Sprintf("%s would go to %s (%d bytes)", one.Domain, strings.Join(one.To, ", "), one.Bytes)
			if len(one.To) == 0 {
				text = one.Domain + " would go to nobody"
			}
			if len(one.Skipped) > 0 {
				text += ", not to " + strings.Join(one.Skipped, ", ")
			}
		} else if one.Before {
			text += " (it was sent before)"
		}
		texts = append(texts, text)
	}
	if len(texts) == 0 {
		return &page.Done{Text: "There is nothing to report of that day."}, nil
	}
	return &page.Done{Text: strings.Join(texts, "; ") + "."}, nil
}

func stateTone(state string) page.Tone {
	switch state {
	case "sent":
		return page.Good
	case "failed":
		return page.Bad
	}
	return page.Quiet
}

func showReports(ctx context.Context, a *page.Ask) (*page.View, error) {
	const shown = 500
	v := &page.View{Intro: "What is counted of mail by the domains of its authors, and reported to their owners who ask for it."}
	day, domain := strings.TrimSpace(a.Get("day")), strings.TrimSpace(a.Get("domain"))
	all, err := Admin{a.Client}.List(ctx, day, domain)
	if err != nil && strings.Contains(err.Error(), errOff.Error()) {
		v.Add(page.Notice{Text: "Nothing is counted: dmarc_reports.enabled is false."})
		return v, nil
	}
	v.Add(page.Form{Fields: []page.Field{
		{Name: "day", Label: "Day", Value: day, Type: "date", Hint: "In UTC."}, {Name: "domain", Label: "Domain", Value: domain, Placeholder: "example.org"},
	}})
	t := page.Table{Columns: []string{"Domain", "Day", "Messages", "State", "To", ""}, Empty: "Nothing was counted."}
	for i := len(all) - 1; i >= 0; i-- {
		e := &all[i]
		if len(t.Rows) == shown {
			t.More = "There are more: search for some."
			break
		}
		state := page.State(stateTone(e.State), e.State)
		state.Note = e.Detail
		to := page.Cell{Text: strings.Join(e.To, ", ")}
		if to.Text == "" {
			to = page.Cell{Text: e.RUA, Tone: page.Quiet}
		}
		var buttons []page.Button
		if e.State != "counting" {
			buttons = []page.Button{
				{Action: "send", Label: "Who would get it?", Values: page.Values("day", e.Day, "domain", e.Domain, "dry", "true")},
				{Action: "send", Label: "Send now", Values: page.Values("day", e.Day, "domain", e.Domain, "again", fmt.Sprint(e.State == "sent")), Confirm: fmt.Sprintf("Send the report of %s of %s now?", e.Day, e.Domain)},
			}
		}
		t.Add(page.Cell{Text: e.Domain, Href: page.Link("dmarc-report", "day", e.Day, "domain", e.Domain)}, page.T("%s", e.Day), page.N(e.Messages), state, to, page.Cell{Buttons: buttons})
	}
	v.Add(t)
	return v, err
}

func showReport(ctx context.Context, a *page.Ask) (*page.View, error) {
	rep, err := Admin{a.Client}.Show(ctx, a.Get("day"), a.Get("domain"))
	if err != nil {
		return nil, err
	}
	v := &page.View{Title: "Report to " + a.Get("domain")}
	f := page.Facts{Title: "Report"}
	f.Add("By", rep.Metadata.Organization)
	f.Add("From", time.Unix(rep.Metadata.Range.Begin, 0).UTC().Format("2006-01-02 15:04 MST"))
	f.Add("Until", time.Unix(rep.Metadata.Range.End, 0).UTC().Format("2006-01-02 15:04 MST"))
	f.Add("Id", rep.Metadata.ID)
	t := page.Table{Title: "Who sends in its name", Columns: []string{"Client", "Messages", "DMARC", "What became of it", "DKIM", "SPF", "Author"}}
	var pass, fail int64
	for i := range rep.Records {
		r := &rep.Records[i]
		result := page.State(page.Bad, "fail")
		if r.Row.Evaluated.Passes() {
			result = page.State(page.Good, "pass")
			pass += r.Row.Count
		} else {
			fail += r.Row.Count
		}
		var keys, spf []string
		for _, d := range r.Results.DKIM {
			keys = append(keys, d.Domain+" "+d.Result)
		}
		for _, s := range r.Results.SPF {
			spf = append(spf, s.Domain+" "+s.Result)
		}
		t.Add(page.Code(r.Row.SourceIP), page.N(r.Row.Count), result, page.T("%s", r.Row.Evaluated.Disposition), page.T("%s", strings.Join(keys, ", ")), page.T("%s", strings.Join(spf, ", ")), page.Code(r.Identifiers.HeaderFrom))
	}
	v.Add(page.Tiles{{Name: "Passed", Value: page.Thousands(pass), Tone: page.Good}, {Name: "Failed", Value: page.Thousands(fail)}, {Name: "Clients and results", Value: fmt.Sprint(len(rep.Records))}}, f, t)
	return v, nil
}
