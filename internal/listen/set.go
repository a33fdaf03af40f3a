package listen

import "net"

// Opened is one open address.
type Opened struct {
	Address Address
	net.Listener
}

// Set is the open addresses of one door. The zero value has none. It is not
// safe for concurrent use.
type Set struct {
	byText map[string]*Opened // by address as written
}

// Change opens the addresses of want that are not open yet and closes those
// that are no longer wanted. When one cannot be opened nothing changes, but
// an address of which only the options differ is closed: two listeners cannot
// have one name. Closing a listener ends its Accept.
func (s *Set) Change(want []Address, in *Inherited) (opened, closed []*Opened, err error) {
	wanted := make(map[string]bool, len(want))
	for _, a := range want {
		if wanted[a.text] || s.byText[a.text] != nil {
			wanted[a.text] = true
			continue // it is given twice, or open
		}
		wanted[a.text] = true
		s.closeSame(a)
		l, err := Open(&a, in)
		if err != nil {
			for _, o := range opened {
				_ = o.Close() // err is what matters
			}
			return nil, nil, err
		}
		opened = append(opened, &Opened{a, l})
	}
	for text, o := range s.byText {
		if !wanted[text] {
			_ = o.Close() // nothing more comes from it either way
			delete(s.byText, text)
			closed = append(closed, o)
		}
	}
	if s.byText == nil {
		s.byText = make(map[string]*Opened)
	}
	for _, o := range opened {
		s.byText[o.Address.text] = o
	}
	return opened, closed, nil
}

func (s *Set) closeSame(a Address) {
	for text, o := range s.byText {
		if o.Address.Network == a.Network && o.Address.Target() == a.Target() && a.Port != "0" {
			_ = o.Close() // it is replaced
			delete(s.byText, text)
		}
	}
}

// Close closes all of them.
func (s *Set) Close() {
	for text, o := range s.byText {
		_ = o.Close() // nothing more comes from it either way
		delete(s.byText, text)
	}
}

// Addrs returns where they are bound.
func (s *Set) Addrs() []net.Addr {
	var out []net.Addr
	for _, o := range s.byText {
		out = append(out, o.Addr())
	}
	return out
}

// Texts returns those of the given addresses that are open, as written.
func (s *Set) Texts(of []Address) []string {
	var out []string
	for _, a := range of {
		if s.byText[a.text] != nil {
			out = append(out, a.text)
		}
	}
	return out
}
