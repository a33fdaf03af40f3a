package moving

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Networks are those of a cidr table.
type Networks struct {
	Permitted []netip.Prefix
	Left      []string // lines that say something else than permit
}

// Postwhite reads a cidr table (cidr_table(5)) of networks and "permit", as
// postwhite and postscreen_access_list have them.
func Postwhite(r io.Reader) (*Networks, error) {
	out := new(Networks)
	err := scanLines(r, func(n int, line string) error {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			return nil
		}
		p, err := netip.ParsePrefix(f[0])
		if a, e := netip.ParseAddr(f[0]); e == nil {
			p, err = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
		}
		switch {
		case err != nil:
			return fmt.Errorf("line %d: %q is no network", n, f[0])
		case p != p.Masked():
			return fmt.Errorf("line %d: %q has bits beyond its mask", n, f[0])
		case len(f) < 2 || !strings.EqualFold(f[1], "permit"):
			out.Left = append(out.Left, fmt.Sprintf("line %d: %s", n, strings.TrimSpace(line)))
		default:
			out.Permitted = append(out.Permitted, p)
		}
		return nil
	})
	return out, err
}
