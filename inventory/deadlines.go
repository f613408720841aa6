package inventory

import "time"

// DefaultDeadlines is how long each step of deploying may take where a
// Definition does not say otherwise, by the step's name. Two of them are judged
// by progress: the time since the last byte, however long the whole takes.
//
// "starting" is not here: it is the Definition's health.deadline, DefaultHealth
// where it has none.
var DefaultDeadlines = map[string]Duration{
	// An orderly shutdown stops services for up to 90 s each (systemd's
	// default); then power is cut, and BMCs take some 10 s to show it.
	"stopping": Duration(5 * time.Minute),
	// Three requests to a BMC that answers slowly while it is busy, each read
	// back and tried again.
	"arming": Duration(2 * time.Minute),
	// IPMI boot flags end 60 s after they were set, so a power-on that was not
	// seen by then is armed anew, once.
	"powering": Duration(2 * time.Minute),
	// From power-on to the first DHCP packet: a server with much memory and
	// many cards needs up to ten minutes for its self-test.
	"booting": Duration(10 * time.Minute),
	// From the first packet to the agent's word: loader, ramdisk of some
	// 100 MB, kernel start, network link after spanning tree's 30 s.
	"claiming": Duration(5 * time.Minute),
	// Disks behind a RAID controller take minutes to appear.
	"inspecting": Duration(5 * time.Minute),
	// Without progress: a disk may stall for a minute in error recovery, a
	// server may restart, a rack may share one uplink.
	"writing": Duration(5 * time.Minute),
	// Without progress, likewise.
	"verifying": Duration(5 * time.Minute),
	// A person has to switch the power, or confirm an erase: a working day and
	// a night.
	"awaiting-operator": Duration(24 * time.Hour),
}

const (
	// DefaultHealth is from the first disk boot to healthy: self-test again,
	// first boot with its configuration, and the report.
	DefaultHealth = Duration(20 * time.Minute)
	// DefaultAttempts: one more after the first, since most failures that a
	// second try does not cure a third does not either.
	DefaultAttempts = 2
	// DefaultLeaseTime of a Network: short enough that a moved machine is not
	// remembered for days, long enough that an hour's outage takes no address.
	DefaultLeaseTime = Duration(time.Hour)
)
