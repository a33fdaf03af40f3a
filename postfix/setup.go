// Package postfix reads how Postfix is set up, by postconf(1), says what is
// wrong or dangerous about it beside postern, and changes it.
package postfix

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Setup is how an instance of Postfix is set up.
type Setup struct {
	// Dir is its configuration directory, "" when it was read from files.
	Dir string
	// Main are the parameters that main.cf sets, as they stand there.
	Main map[string]string
	// Defaults are values of others, as postconf -d has them; of those that it has not
	// the built-in ones are taken.
	Defaults map[string]string
	// Services are the entries of master.cf.
	Services []Service
}

// Service is an entry of master.cf (master(5)).
type Service struct {
	Name, Type string // "smtp", "inet"
	Chroot     bool
	Command    string // "smtpd"
	// Set are its own parameters ("-o name=value").
	Set map[string]string
}

// builtIn are defaults of Postfix 3.7, where no postconf says them.
var builtIn = map[string]string{
	"queue_directory": "/var/spool/postfix", "myhostname": "localhost", "mydestination": "$myhostname, localhost.$mydomain, localhost",
	"smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination", "smtpd_recipient_restrictions": "",
	"smtpd_policy_service_timeout": "100s", "smtpd_policy_service_default_action": "451 4.3.5 Server configuration problem",
	"milter_default_action": "tempfail", "milter_command_timeout": "30s", "milter_content_timeout": "300s", "milter_connect_timeout": "30s",
	"smtpd_delay_reject": "yes", "smtpd_peername_lookup": "yes", "soft_bounce": "no", "smtpd_relay_before_recipient_restrictions": "yes",
	"mynetworks_style": "host", "relay_domains": "", "relay_recipient_maps": "", "relayhost": "", "content_filter": "", "default_process_limit": "100",
	"smtp_helo_name": "$myhostname", "smtpd_helo_required": "no", "smtpd_reject_unlisted_recipient": "yes", "inet_interfaces": "all",
}

// Value returns a parameter of a service, nil for main.cf alone, with all
// others in it expanded (postconf(5), "$name").
func (s *Setup) Value(of *Service, name string) string { return s.expand(of, s.raw(of, name), 0) }

// IsSet reports whether a parameter is given at all.
func (s *Setup) IsSet(of *Service, name string) bool {
	if of != nil {
		if _, ok := of.Set[name]; ok {
			return true
		}
	}
	_, ok := s.Main[name]
	return ok
}

func (s *Setup) raw(of *Service, name string) string {
	if of != nil {
		if v, ok := of.Set[name]; ok {
			return v
		}
	}
	if v, ok := s.Main[name]; ok {
		return v
	}
	if v, ok := s.Defaults[name]; ok {
		return v
	}
	return builtIn[name]
}

// maxExpansion bounds names within values; Postfix gives up at a circle, too.
const maxExpansion = 20

// expand puts values in the place of $name, ${name}, $(name), ${name?text} and
// ${name:text}.
func (s *Setup) expand(of *Service, v string, depth int) string {
	if depth > maxExpansion || !strings.Contains(v, "$") {
		return v
	}
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(v, "$")
		b.WriteString(before)
		if !ok || rest == "" {
			return b.String()
		}
		name, after := rest, ""
		switch rest[0] {
		case '$':
			b.WriteByte('$')
			v = rest[1:]
			continue
		case '{', '(':
			end := closing(rest)
			if end < 0 {
				b.WriteString("$" + rest)
				return b.String()
			}
			name, after = rest[1:end], rest[end+1:]
		default:
			n := strings.IndexFunc(rest, func(r rune) bool {
				return r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
			})
			if n >= 0 {
				name, after = rest[:n], rest[n:]
			}
		}
		v = after
		if i := strings.IndexAny(name, "?:"); i >= 0 {
			value := s.expand(of, s.raw(of, strings.TrimSpace(name[:i])), depth+1)
			if (name[i] == '?') == (value != "") {
				text := strings.TrimSpace(name[i+1:])
				if inner, ok := strings.CutPrefix(text, "{"); ok { // ${name?{text}:{other}}
					text, _, _ = strings.Cut(inner, "}")
				}
				b.WriteString(s.expand(of, text, depth+1))
			}
			continue
		}
		b.WriteString(s.expand(of, s.raw(of, name), depth+1))
	}
}

// closing returns the index of the bracket that ends the one that v begins
// with, -1 for none.
func closing(v string) int {
	end := byte('}')
	if v[0] == '(' {
		end = ')'
	}
	depth := 0
	for i := range len(v) {
		switch v[i] {
		case v[0]:
			depth++
		case end:
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// SMTPD are the services that talk to clients by SMTP.
func (s *Setup) SMTPD() []*Service {
	var out []*Service
	for i := range s.Services {
		if s.Services[i].Command == "smtpd" {
			out = append(out, &s.Services[i])
		}
	}
	return out
}

// Recipient is the postmaster of a domain that mail is taken for, of this host
// where no list names one.
func (s *Setup) Recipient() string {
	for _, list := range []string{"mydestination", "virtual_mailbox_domains", "virtual_alias_domains", "relay_domains"} {
		for _, d := range words(s.Value(nil, list)) {
			if d = strings.TrimPrefix(d, "."); strings.Contains(d, ".") && !strings.ContainsAny(d, ":/") && !strings.HasPrefix(d, "localhost") {
				return "postmaster@" + d
			}
		}
	}
	return "postmaster@" + s.Value(nil, "myhostname")
}

// Queue is the queue directory, the root of chrooted services.
func (s *Setup) Queue() string { return s.Value(nil, "queue_directory") }

// Read asks postconf about the instance of a configuration directory, "" for
// the default one.
func Read(ctx context.Context, dir string) (*Setup, error) {
	s := &Setup{}
	ask := func(args ...string) (string, error) {
		if dir != "" {
			args = append([]string{"-c", dir}, args...)
		}
		cmd := exec.CommandContext(ctx, postconf(), args...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if errors.Is(err, exec.ErrNotFound) {
			return "", errors.New("there is no postconf here; give its output in files")
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(errs.String()))
		}
		return string(out), nil
	}
	main, err := ask("-n")
	if err != nil {
		return nil, err
	}
	if s.Main, err = ParseMain("postconf -n", strings.NewReader(main)); err != nil {
		return nil, err
	}
	defaults, err := ask("-d")
	if err != nil {
		return nil, err
	}
	if s.Defaults, err = ParseMain("postconf -d", strings.NewReader(defaults)); err != nil {
		return nil, err
	}
	master, err := ask("-M")
	if err != nil {
		return nil, err
	}
	if s.Services, err = ParseMaster("postconf -M", strings.NewReader(master)); err != nil {
		return nil, err
	}
	if s.Dir = dir; s.Dir == "" {
		s.Dir = s.raw(nil, "config_directory")
	}
	return s, nil
}

// postconf is where postconf(1) is: administrators' directories are not in
// everybody's path.
func postconf() string { return program("postconf") }

func program(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return filepath.Join("/usr/sbin", name)
}

// maxLine is the most bytes of one logical line.
const maxLine = 1 << 20

// logical yields the logical lines of a file of Postfix's, with the number of
// the first line of each: lines that begin with white space go on, # begins a
// comment (postconf(5)).
func logical(name string, in io.Reader, yield func(number int, text string) error) error {
	b := bufio.NewScanner(in)
	b.Buffer(make([]byte, 0, 64<<10), maxLine)
	number, first, text := 0, 0, ""
	give := func() error {
		if strings.TrimSpace(text) == "" {
			return nil
		}
		return yield(first, text)
	}
	for b.Scan() {
		number++
		line := strings.TrimRight(b.Text(), "\r")
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(strings.TrimSpace(line), "#"):
		case line[0] == ' ' || line[0] == '\t':
			if text == "" {
				return fmt.Errorf("%s:%d: a line goes on, and there is none before it", name, number)
			}
			if text += " " + strings.TrimSpace(line); len(text) > maxLine {
				return fmt.Errorf("%s:%d: more than %d bytes", name, first, maxLine)
			}
		default:
			if err := give(); err != nil {
				return err
			}
			text, first = line, number
		}
	}
	if err := b.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", name, number+1, err)
	}
	return give()
}

// ParseMain reads what postconf -n prints, or a main.cf. name is that of the
// file, for errors: "name:line: what".
func ParseMain(name string, in io.Reader) (map[string]string, error) {
	out := make(map[string]string)
	err := logical(name, in, func(number int, text string) error {
		key, value, ok := strings.Cut(text, "=")
		if key = strings.TrimSpace(key); !ok || key == "" || strings.ContainsAny(key, " \t") {
			return fmt.Errorf("%s:%d: %q is not \"name = value\"", name, number, short(text))
		}
		out[key] = strings.TrimSpace(value)
		return nil
	})
	return out, err
}

// ParseMaster reads what postconf -M prints, or a master.cf.
func ParseMaster(name string, in io.Reader) ([]Service, error) {
	var out []Service
	err := logical(name, in, func(number int, text string) error {
		words := split(text)
		if len(words) < 8 {
			return fmt.Errorf("%s:%d: %q is no service: name, type, private, unpriv, chroot, wakeup, maxproc, command", name, number, short(text))
		}
		s := Service{Name: words[0], Type: words[1], Chroot: words[4] == "y", Command: words[7], Set: map[string]string{}}
		args := words[8:]
		for i := 0; i < len(args); i++ {
			arg := args[i]
			if arg == "-o" && i+1 < len(args) {
				i++
				arg = args[i]
			} else if rest, ok := strings.CutPrefix(arg, "-o"); ok && rest != "" {
				arg = rest
			} else {
				continue
			}
			key, value, ok := strings.Cut(arg, "=")
			if !ok {
				return fmt.Errorf("%s:%d: -o %s of service %s is not name=value", name, number, short(arg), s.Name)
			}
			s.Set[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// split parts the words of a line of master.cf: white space separates them, and
// what is in braces is one (Postfix 3.0).
func split(text string) (words []string) {
	for {
		text = strings.TrimLeft(text, " \t")
		switch {
		case text == "":
			return words
		case text[0] == '{':
			end := closing(text)
			if end < 0 {
				return append(words, strings.TrimSpace(text[1:]))
			}
			words = append(words, strings.TrimSpace(text[1:end]))
			text = text[end+1:]
		default:
			word := text
			if i := strings.IndexAny(text, " \t"); i >= 0 {
				word = text[:i]
			}
			words = append(words, word)
			text = text[len(word):]
		}
	}
}

func short(s string) string {
	const most = 60
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}

// Names returns the parameters that main.cf sets, sorted.
func (s *Setup) Names() []string { return slices.Sorted(maps.Keys(s.Main)) }
