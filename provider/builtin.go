package provider

import (
	"maps"
	"slices"
)

// builtin are the providers known by name, with the domains whose SPF records
// list their networks. Only providers are here whose records can be flattened:
// those of Yahoo (ptr), Salesforce and Proofpoint (exists) cannot.
var builtin = map[string][]string{
	"amazonses":       {"amazonses.com"},
	"brevo":           {"spf.brevo.com"},
	"campaignmonitor": {"_spf.createsend.com"},
	"constantcontact": {"spf.constantcontact.com"},
	"fastmail":        {"spf.messagingengine.com"},
	"gandi":           {"_mailcust.gandi.net"},
	"github":          {"github.com"},
	"gmx":             {"gmx.net"},
	"google":          {"_spf.google.com"}, // Workspace and Gmail
	"icloud":          {"icloud.com"},
	"ionos":           {"_spf-eu.ionos.com", "_spf-us.ionos.com"},
	"mailbox.org":     {"mailbox.org"},
	"mailchimp":       {"servers.mcsv.net"},
	"mailgun":         {"mailgun.org"},
	"mailjet":         {"spf.mailjet.com"},
	"mandrill":        {"spf.mandrillapp.com"},
	"mimecast":        {"_netblocks.mimecast.com"},
	"office365":       {"spf.protection.outlook.com"}, // Exchange Online
	"outlook":         {"outlook.com"},                // the consumer service, Hotmail
	"ovh":             {"mx.ovh.com"},
	"postmark":        {"spf.mtasv.net"},
	"posteo":          {"posteo.de"},
	"proton":          {"_spf.protonmail.ch"},
	"rackspace":       {"emailsrvr.com"},
	"sendgrid":        {"sendgrid.net"},
	"web.de":          {"web.de"},
	"yandex":          {"_spf.yandex.net"},
	"zendesk":         {"mail.zendesk.com"},
	"zoho":            {"zohomail.com"},
}

// Builtin returns the names of the built-in providers, sorted.
func Builtin() []string { return slices.Sorted(maps.Keys(builtin)) }

// BuiltinDomains returns the domains whose SPF records make the list of a
// built-in provider, nil for another name.
func BuiltinDomains(name string) []string { return slices.Clone(builtin[name]) }
