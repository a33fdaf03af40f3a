package headercheck

import (
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"

	"postern/policy"
)

// benchFields are those of an ordinary message.
var benchFields = []policy.Field{
	{Name: "Received", Value: " from mail.example.org (mail.example.org [192.0.2.7])\n\tby mx.example.com (Postfix) with ESMTPS id 4F1c2d3e4f5\n\tfor <bob@example.com>; Mon,  3 Jun 2024 10:00:00 +0200 (CEST)"},
	{Name: "Date", Value: " Mon, 3 Jun 2024 09:59:58 +0200"},
	{Name: "From", Value: " Alice Example <alice@example.org>"},
	{Name: "To", Value: " Bob Example <bob@example.com>"},
	{Name: "Subject", Value: " Re: minutes of the meeting of last Tuesday, and what was said about it"},
	{Name: "Message-ID", Value: " <20240603095958.4F1c2d3e@mail.example.org>"},
	{Name: "MIME-Version", Value: " 1.0"},
	{Name: "Content-Type", Value: " text/plain; charset=utf-8"},
}

// headerRules are n rules of the kind that administrators have.
func headerRules(n int) string {
	var b strings.Builder
	names := []string{"Subject", "From", "To", "X-Mailer", "Received", "Message-ID", "Reply-To", "Content-Type"}
	for i := range n {
		switch name := names[i%len(names)]; i % 10 {
		case 7:
			fmt.Fprintf(&b, "/^%s: .*\\bword%d(ly|ness)?\\b/ REJECT rule %d\n", name, i, i)
		case 8:
			fmt.Fprintf(&b, "/^X-Header-%d: ([a-z]+)/ REPLACE X-Other: $1\n", i)
		case 9:
			fmt.Fprintf(&b, "/^(%s|Sender): .*@bad%d\\.example(\\.|>|$)/ REJECT rule %d\n", name, i, i)
		default:
			fmt.Fprintf(&b, "/^%s: .*(spam|junk)%d[^a-z]/ REJECT rule %d\n", name, i, i)
		}
	}
	return b.String()
}

func benchmark(b *testing.B, fields []policy.Field, body []byte, texts ...string) {
	b.Helper()
	c := tables(b, b.TempDir(), texts...)
	check, err := New(c, zap.NewNop(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	req := &policy.Request{}
	to := []policy.Address{{Raw: "bob@example.com", Local: "bob", Domain: "example.com"}}
	b.ReportAllocs()
	for b.Loop() {
		m := check.Inspect(req, to)
		for i := range fields {
			m.Header(fields[i])
		}
		m.EndOfHeaders()
		m.Body(body)
		if j, err := m.End(b.Context()); err != nil || j.Verdict.Action != policy.Continue || len(j.Edits) > 0 {
			b.Fatal(j, err)
		}
	}
}

// BenchmarkMessage is a message with 8 headers and 2 kB of body.
func BenchmarkMessage(b *testing.B) {
	body := []byte(strings.Repeat("An ordinary line of an ordinary message, sixty bytes long..\r\n", 34))
	bodyRules := func(n int) string {
		var s strings.Builder
		for i := range n {
			fmt.Fprintf(&s, "/(buy|sell) thing%d now/ REJECT rule %d\n", i, i)
		}
		return s.String()
	}
	for _, n := range []int{10, 100, 1000, 10000} {
		b.Run(fmt.Sprintf("%d header rules", n), func(b *testing.B) { benchmark(b, benchFields, body, "header\n"+headerRules(n)) })
	}
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("%d header rules decoded", n), func(b *testing.B) { benchmark(b, benchFields, body, "header decoded\n"+headerRules(n)) })
	}
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("%d body rules", n), func(b *testing.B) { benchmark(b, benchFields, body, "body\n"+bodyRules(n)) })
	}
	// Nothing to go by: the worst that rules can be.
	var blind strings.Builder
	for i := range 100 {
		fmt.Fprintf(&blind, "/[0-9]{%d}[x-z]+$/ REJECT\n", i%10+5)
	}
	b.Run("100 rules without a literal", func(b *testing.B) { benchmark(b, benchFields, body, "header\n"+blind.String()) })
}
