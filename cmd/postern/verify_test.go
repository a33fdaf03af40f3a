package main

import "testing"

// What proves a mailbox is a message that a next hop has taken.
func TestDelivered(t *testing.T) {
	const from = "Jan  1 00:00:00 gate postfix/"
	for line, want := range map[string]string{
		from + "smtp[123]: 4ABC1234: to=<ann@example.org>, relay=mail.example.org[192.0.2.1]:25, delay=0.4, delays=0.1/0/0.1/0.2, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4XYZ)":                                                   "ann@example.org",
		from + "relay/smtp[123]: 4ABC1234: to=<ann@example.org>, orig_to=<info@example.org>, relay=mail.example.org[192.0.2.1]:25, conn_use=2, delay=0.4, delays=0.1/0/0.1/0.2, dsn=2.1.5, status=sent (250 2.1.5 Ok)":                     "ann@example.org",
		"Jan  1 00:00:00 gate postfix-in/smtp[123]: 4ABC1234: to=<bob@example.org>, relay=mail.example.org[192.0.2.1]:25, delay=0.4, delays=0.1/0/0.1/0.2, dsn=2.0.0, status=sent (250 Ok)":                                                "bob@example.org",
		from + "lmtp[9]: 4ABC1234: to=<ann@example.org>, relay=gate.example.org[/run/dovecot/lmtp], delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 <ann@example.org> Saved)":                                               "ann@example.org",
		from + "smtp[123]: 4ABC1234: to=<ann@example.org>, relay=mail.example.org[192.0.2.1]:25, delay=0.4, delays=0.1/0/0.1/0.2, dsn=5.1.1, status=bounced (host mail.example.org[192.0.2.1] said: 550 x dsn=2.0.0, status=sent (250 ok)": "",
		from + "smtp[123]: 4ABC1234: to=<ann@example.org>, relay=mail.example.org[192.0.2.1]:25, delay=0.4, delays=0.1/0/0.1/0.2, dsn=2.1.5, status=deliverable (250 2.1.5 Ok)":                                                            "",
		from + "smtp[123]: 4ABC1234: to=<ann@example.org>, relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, status=deferred (connect to mail.example.org[192.0.2.1]:25: Connection timed out)":                                            "",
		from + "pipe[123]: 4ABC1234: to=<ann@example.org>, relay=filter, delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (delivered via filter service)":                                                                               "",
		from + "discard[123]: 4ABC1234: to=<ann@example.org>, relay=none, delay=0, delays=0/0/0/0, dsn=2.0.0, status=sent (example.org)":                                                                                                   "",
	} {
		got := ""
		if m := delivered.FindStringSubmatch(line); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("%q of\n%s", got, line)
		}
	}
}
