package dkim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// other is another program that verifies signatures. It is given a file with
// "name record" lines and one with the message, and answers "pass" for each good
// signature and "fail" for each bad one.
type other struct {
	name, needs string
	command     func(keys, file string) *exec.Cmd
	verdicts    func(out string) string
}

const byDkimpy = `
import dkim, sys
keys = dict(l.rstrip("\n").split(" ", 1) for l in open(sys.argv[1]))
message = open(sys.argv[2], "rb").read()
def look(name, timeout=5):
    return keys.get(name.decode().rstrip("."), "").encode()
d = dkim.DKIM(message)
n = sum(1 for h in d.headers if h[0].lower() == b"dkim-signature")
for i in range(n):
    try:
        print("pass" if dkim.DKIM(message).verify(idx=i, dnsfunc=look) else "fail")
    except dkim.DKIMException as e:
        print("fail", e)
`

const byPerl = `
use Mail::DKIM::Verifier; use Mail::DKIM::DNS; use Net::DNS;
my %keys; open(my $k, "<", $ARGV[0]) or die; while (<$k>) { chomp; my ($n, $r) = split / /, $_, 2; $keys{$n} = $r; }
no warnings "redefine";
*Mail::DKIM::DNS::query = sub {
	my ($name) = @_;
	return unless $keys{$name};
	return Net::DNS::RR->new(name => $name, type => "TXT", txtdata => [$keys{$name} =~ /(.{1,255})/g]);
};
my $d = Mail::DKIM::Verifier->new; open(my $m, "<", $ARGV[1]) or die; binmode $m;
while (<$m>) { $d->PRINT($_); } $d->CLOSE;
for my $s ($d->signatures) { print $s->result eq "pass" ? "pass\n" : "fail " . $s->result_detail . "\n"; }
`

func others() []other {
	return []other{
		{
			"dkimpy", "/usr/bin/python3",
			func(keys, file string) *exec.Cmd { return exec.Command("/usr/bin/python3", "-c", byDkimpy, keys, file) }, nil,
		},
		{
			"Mail::DKIM", "dkimproxy-sign",
			func(keys, file string) *exec.Cmd { return exec.Command("perl", "-e", byPerl, keys, file) }, nil,
		},
		{
			"opendkim", "opendkim",
			func(keys, file string) *exec.Cmd {
				conf := filepath.Join(filepath.Dir(keys), "opendkim.conf")
				// What it says of a message is one line of its own, and the results field.
				_ = os.WriteFile(conf, fmt.Appendf(nil, "TestPublicKeys %s\nMode v\nAlwaysAddARHeader yes\n", keys), 0o600)
				return exec.Command("opendkim", "-x", conf, "-t", file, "-vv")
			},
			func(out string) string {
				var words []string
				for w := range strings.FieldsSeq(out) {
					if w, ok := strings.CutPrefix(w, "dkim="); ok {
						words = append(words, map[bool]string{true: "pass", false: "fail"}[w == "pass"])
					}
				}
				return strings.Join(words, "\n")
			},
		},
	}
}

// Every kind of signature is good for the verifiers that are in use, and no
// longer when the message has been changed.
func TestOthersVerify(t *testing.T) {
	texts := map[string]string{
		"plain": strings.ReplaceAll(letter, "\r \r\n", "\r\n"),
		"empty": "From: ann@example.org\r\nSubject:\r\n\r\n",
		"folded": "From: =?utf-8?q?Ann?=\r\n <ann@example.org>\r\nsubject:no space\r\nSubject:\r\n\tfolded at once \t\r\nTo:  two  blanks  \r\n\r\n" +
			strings.Repeat("x", 990) + "\r\n" + strings.Repeat(" line \t with blanks  \r\n", 2000) + "\r\n\r\n",
	}
	for _, o := range others() {
		t.Run(o.name, func(t *testing.T) {
			if _, err := exec.LookPath(o.needs); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skipf("%v (make deps installs it)", err)
			}
			for _, canon := range []string{"relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"} {
				for _, kind := range []string{"rsa0", "ed0"} {
					if o.name == "Mail::DKIM" && kind == "ed0" {
						continue // it does not know ed25519-sha256
					}
					if o.name == "opendkim" && strings.HasPrefix(canon, "simple/") {
						continue // it takes the blank behind the colon away when it reads a file
					}
					b := newCheck(t, func(c *Config) { c.Canonicalization = canon }, kind)
					b.publish()
					var keys strings.Builder
					for name, records := range b.dns.records {
						fmt.Fprintf(&keys, "%s %s\n", name, records[0])
					}
					file := put(t, "keys", keys.String())
					for what, text := range texts {
						_, signed := b.show(login(), text)
						for change, want := range map[string]string{"": "pass", "body": "fail", "Subject": "fail", "From": "fail"} {
							if want == "fail" && what != "plain" {
								continue
							}
							changed := signed
							switch change {
							case "body":
								changed += "more\r\n"
							case "Subject":
								changed = strings.Replace(signed, "\r\nSubject:", "\r\nSubject: more ", 1)
							case "From":
								changed = "From: <bank@example.net>\r\n" + signed
							}
							out, err := o.command(file, put(t, "message", changed)).CombinedOutput()
							got := string(out)
							if o.verdicts != nil {
								got = o.verdicts(got)
							}
							if got = strings.TrimSpace(got); got != want && !(want == "fail" && strings.HasPrefix(got, "fail")) {
								t.Errorf("%s %s, %s, changed %q: %s (%v)\n%.3000s", canon, kind, what, change, out, err, changed)
							}
						}
					}
				}
			}
		})
	}
}
