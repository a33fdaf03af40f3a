package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"postern/internal/page"
)

// Pages are what the console shows of authentication.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "message", Title: "Test a message", Group: "Authentication", Show: showMessage, Actions: []page.Action{
		{Name: "test", Role: page.RoleView, Trial: true, Do: testMessage},
	}}}
}

func messageForm(a *page.Ask) page.Form {
	return page.Form{Action: "test", Submit: "Authenticate it", Fields: []page.Field{
		{Name: "message", Label: "Message", Type: "file", Hint: "A file as mail programs save it (.eml)."},
		{Name: "client", Label: "Client", Required: true, Placeholder: "192.0.2.7", Value: a.Get("client"), Hint: "The address that handed it in."},
		{Name: "helo", Label: "HELO", Value: a.Get("helo")}, {Name: "sender", Label: "Envelope sender", Value: a.Get("sender"), Hint: "Left out: the null sender."},
		{Name: "name", Label: "Verified name of the client", Value: a.Get("name")}, {Name: "login", Label: "Login", Value: a.Get("login")},
		{Name: "text", Label: "Or the message's text", Type: "textarea"},
	}}
}

func showMessage(_ context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "SPF, DKIM, ARC and DMARC of a message, step by step, and what would come of it. Nothing is counted; the DNS is asked."}
	v.Add(messageForm(a))
	return v, nil
}

func tone(result string) page.Tone {
	switch result {
	case "pass":
		return page.Good
	case "fail", "permerror", "policy":
		return page.Bad
	case "none", "":
		return page.Quiet
	}
	return page.Warn
}

func testMessage(ctx context.Context, a *page.Ask) (*page.Done, error) {
	text := cmp.Or(a.Get("message"), a.Get("text"))
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("there is no message: choose a file, or write its text")
	}
	rep, err := Admin{a.Client}.Test(ctx, Question{
		Message: []byte(text), Client: strings.TrimSpace(a.Get("client")), Name: a.Get("name"), Helo: a.Get("helo"), Sender: a.Get("sender"), Login: a.Get("login"),
	})
	if err != nil {
		return nil, err
	}
	v := reportView(&rep)
	form := messageForm(a)
	form.Title, form.Closed = "Another one", true
	v.Add(form)
	return &page.Done{View: v}, nil
}

func reportView(r *Report) *page.View {
	v := &page.View{Title: "What authentication finds"}
	if r.Skipped != "" {
		v.Add(page.Notice{Tone: page.Warn, Text: "Such a message is not looked at: " + r.Skipped + ". If it were:"})
	}
	if r.Hostile != "" {
		v.Add(page.Notice{Tone: page.Bad, Text: "No signature is looked at: " + r.Hostile})
	}
	f := page.Facts{Title: "Outcome"}
	f.AddCell("Verdict", page.Verdict(&r.Verdict))
	if r.Verdict.Action.Refuses() {
		f.AddCell("Reply", page.Code(r.Verdict.Reply.String()))
	}
	s := page.State(tone(r.SPF.Result), cmp.Or(r.SPF.Result, "none"))
	s.Note = strings.TrimSpace(r.SPF.Domain + " " + r.SPF.Identity)
	f.AddCell("SPF", s)
	f.Add("Author", r.BadFrom)
	f.Add("Marks", strings.Join(r.Marks, ", "))
	f.Add("Told by hosts before us", strings.Join(r.Upstream, ", "))
	v.Add(f)
	d := page.Table{Title: "DMARC", Columns: []string{"Author's domain", "Result", "Aligned", "Policy asked for", "Record"}, Empty: "There is no author's domain."}
	for _, one := range r.Authors {
		result := page.State(tone(one.Result), one.Result)
		result.Note = one.Reason
		if one.Sealer != "" {
			result.Note = strings.TrimSpace(result.Note + " vouched for by " + one.Sealer)
		}
		record := page.Code(one.Text)
		record.Note = one.Record
		d.Add(page.Code(one.Domain), result, page.T("%s", strings.Join(one.Aligned, ", ")), page.T("%s", one.Wish), record)
	}
	k := page.Table{Title: "DKIM", Columns: []string{"Domain", "Result", "Key", "Body", "Signs"}, Empty: "There is no signature."}
	for i := range r.Signatures {
		one := &r.Signatures[i]
		result := page.State(tone(one.Result), one.Result)
		result.Note = one.Reason
		key := page.Cell{Text: one.KeyName, Code: true, Note: one.Record}
		if one.Bits > 0 {
			key.Note = fmt.Sprintf("RSA %d: %s", one.Bits, one.Record)
		}
		body := page.Cell{}
		if one.BodyHash != "" {
			if body = page.T("as signed"); one.BodyHash != one.Claimed {
				body = page.Cell{Text: "changed", Tone: page.Bad, Note: one.BodyHash + ", signed was " + one.Claimed}
			}
		}
		domain := page.Code(one.Domain)
		domain.Note = "selector " + one.Selector + ", " + one.Algorithm
		k.Add(domain, result, key, body, page.Cell{Text: strings.Join(one.Signed, ": ")})
	}
	v.Add(d, k)
	if len(r.ARC.Sets) > 0 {
		c := page.Table{Title: "ARC chain: " + r.ARC.Result, Note: r.ARC.Reason, Columns: []string{"Sealed by", "Signed by", "Results", "Trusted"}}
		for _, set := range r.ARC.Sets {
			trusted := page.State(page.Quiet, "no")
			if set.Trusted {
				trusted = page.State(page.Good, "yes")
			}
			c.Add(page.Code(set.Sealer), page.Code(set.Signer), page.Code(set.Results), trusted)
		}
		v.Add(c)
	}
	if r.Field != "" {
		v.Add(page.Text{Title: "What would be written", Text: r.Field, Copy: true})
	}
	for _, one := range r.Removed {
		v.Add(page.Text{Title: "Would be taken out", Text: one})
	}
	return v
}
