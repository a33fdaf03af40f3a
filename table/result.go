package table

import (
	"strconv"
	"strings"
)

// part is a piece of a result: literal text, or a group when it is above 0.
type part struct {
	text  string
	group int
}

// substitution reads the result of a rule (mac_parse(3)): $1, ${1}, $(1) are
// groups, $$ is a dollar sign.
func (p *parser) substitution(r *Rule, in *instr, at int) bool {
	s := r.Result
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			r.result = append(r.result, part{text: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(s); {
		if s[i] != '$' {
			lit.WriteByte(s[i])
			i++
			continue
		}
		if strings.HasPrefix(s[i:], "$$") {
			lit.WriteByte('$')
			i += 2
			continue
		}
		flush()
		start := i
		name, n := macro(s[i+1:])
		if n == 0 {
			p.warnf(at+start, "a $ without a number in the result (a dollar sign is written $$)")
			return false
		}
		i += 1 + n
		group, err := strconv.Atoi(name)
		if err != nil || group < 1 || name[0] == '+' || name[0] == '-' {
			p.warnf(at+start, "%q in the result is not the number of a group", s[start:i])
			return false
		}
		if in.not {
			p.warnf(at+start, "%q in the result of a negated pattern, which finds nothing", s[start:i])
			return false
		}
		if group > in.re.groups {
			p.warnf(at+start, "%q in the result, but the pattern has %d groups", s[start:i], in.re.groups)
			return false
		}
		r.Substitutes = true
		r.result = append(r.result, part{group: group})
	}
	flush()
	if !r.Substitutes {
		if len(r.result) == 1 {
			r.literal = r.result[0].text
		}
		r.result = nil
		return true
	}
	used := 0
	for _, x := range r.result {
		used = max(used, x.group)
	}
	doubt, err := in.re.needGroups(used)
	if err != nil {
		p.faultf(at, "%v", err)
		return false
	}
	if doubt != "" {
		p.t.notes.Filef(p.t.name, p.l.line, p.l.column(at), "$ in the result may hold something else than in Postfix: %s", doubt)
	}
	return true
}

// macro returns the name after a $ and how many bytes it takes; 0: none.
func macro(s string) (name string, n int) {
	if s == "" {
		return "", 0
	}
	if i := strings.IndexByte("({", s[0]); i >= 0 {
		opener, closer := s[0], ")}"[i]
		level := 1
		for j := 1; j < len(s); j++ {
			switch s[j] {
			case opener:
				level++
			case closer:
				if level--; level == 0 {
					if j == 1 {
						return "", 0
					}
					return s[1:j], j + 1
				}
			}
		}
		return "", 0
	}
	for n < len(s) && (isAlnum(s[n]) || s[n] == '_') {
		n++
	}
	return s[:n], n
}

func (r *Rule) expand(groups []string) string {
	var b strings.Builder
	for _, x := range r.result {
		if x.group > 0 {
			b.WriteString(groups[x.group])
		} else {
			b.WriteString(x.text)
		}
	}
	return b.String()
}
