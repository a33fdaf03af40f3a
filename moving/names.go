package moving

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// DNS is asked for clients' names.
type DNS interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
}

// How many clients are asked about at once, for how long, and how many names
// of one are looked at.
const (
	atOnce   = 50
	nameTime = 10 * time.Second
	mostPTR  = 5
)

// Names sets the verified names of clients that have none: reverse names that
// lead back to the address (FCrDNS), as Postfix does. It returns how many
// clients have one. done is called after each, from many goroutines.
func Names(ctx context.Context, dns DNS, past []Pass, done func()) (named int) {
	names := make(map[netip.Addr]string)
	for i := range past {
		if past[i].Name == "" {
			names[past[i].Client] = ""
		}
	}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		slots = make(chan struct{}, atOnce)
	)
	addrs := make([]netip.Addr, 0, len(names))
	for addr := range names {
		addrs = append(addrs, addr)
	}
	for _, addr := range addrs {
		if ctx.Err() != nil {
			break
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			name := verified(ctx, dns, addr)
			mu.Lock()
			names[addr] = name
			if name != "" {
				named++
			}
			mu.Unlock()
			done()
		})
	}
	wg.Wait()
	for i := range past {
		if past[i].Name == "" {
			past[i].Name = names[past[i].Client]
		}
	}
	return named
}

// verified returns the first name of an address that leads back to it.
func verified(ctx context.Context, dns DNS, addr netip.Addr) string {
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	found, err := dns.LookupAddr(ctx, addr.String())
	if err != nil {
		return ""
	}
	for _, name := range found[:min(mostPTR, len(found))] {
		addrs, err := dns.LookupIPAddr(ctx, name)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == addr {
				return strings.TrimSuffix(name, ".")
			}
		}
	}
	return ""
}
