package store

// The spaces of [Values], one for each kind of thing that a part keeps.
const (
	VerifySpace      = "verify"             // recipients
	KnownSpace       = "known"              // correspondents
	KnownDomainSpace = "known-domain"       // and their domains
	ExpectSpace      = "expect"             // mail that must come now
	NetworkSpace     = "greylist-network"   // networks and what came of their first contacts
	MeterSpace       = "limit"              // meters, so that they can be listed and removed as values
	RaiseSpace       = "limit-raise"        // limits that are raised for a time
	NotifySpace      = "limit-notify"       // who tells of a limit next
	ReportSpace      = "dmarc-report"       // counts for reports
	ForgetSpace      = "greylist-forgotten" // what gateways are to forget
	providerSpace    = "provider"           // documents of the fleet
	leaseSpace       = "provider-lease"     // and who makes the next
)

// moved are the spaces that move to another store: what is of use there, in
// the order in which it is given out. Leases stay behind.
var moved = []string{VerifySpace, KnownSpace, KnownDomainSpace, ExpectSpace, NetworkSpace, RaiseSpace, MeterSpace, ReportSpace, providerSpace}
