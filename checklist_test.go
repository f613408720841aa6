package recast_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// checklist are the behaviours of firmware and networks that the boot plane has
// to bear, and the tests that show each. What firmware says itself, and a server that
// runs out of room, stands in dhcp/testdata as it was recorded; the packets of Raspberry Pi and ONIE are made
// from documents (dhcp/boards_test.go).
var checklist = []struct {
	row       int
	behaviour string
	tests     string
}{
	{1, "the reply's destination by RFC 2131 §4.1", "dhcp.TestReplyGoesToRelayBroadcastClientOrHardwareInThatOrder dhcp.TestRepliesOnTheWireGoWhereRFC2131Says"},
	{2, "a NAK through a relay is to be broadcast", "dhcp.TestNakThroughARelayIsToBeBroadcast"},
	{3, "the states of REQUEST are told apart", "dhcp.TestChoosingAnotherServerFreesOurOffer dhcp.TestClientsKeepTheirAddressThroughTheirWholeLife dhcp.TestDhclientGetsItsOldAddressAgainAndTakesANak"},
	{4, "a machine calls itself differently in firmware, loader and system", "dhcp.TestReservationHoldsWhateverTheClientCallsItself dhcp.TestOneAddressForFirmwareLoaderAndSystem"},
	{5, "replies have 300 bytes at least", "dhcp.TestEveryReplyHas300Bytes dhcp.TestUdhcpcBehindDhcrelayBindsAndRenews"},
	{6, "replies fit 576 bytes unless more is asked for", "dhcp.TestOverloadsTheHeaderForSystemsNeverForFirmware"},
	{7, "options overflow into the header's fields, never for boot ROMs", "dhcp.TestOverloadsTheHeaderForSystemsNeverForFirmware dhcp.TestDhclientReadsAnOverloadedReply dhcp.TestOverloadedFieldsOfARealServerAreRead"},
	{8, "long options go in parts", "dhcp.TestOptionsLongerThan255BytesGoInParts"},
	{9, "option 82 comes back byte-exact and last", "dhcp.TestRelayOptionIsEchoedByteExactAndLast dhcp.TestLinkSelectionNamesTheSubnet dhcp.TestServerIdentifierOverrideMakesTheRelayTheServer dhcp.TestUdhcpcBehindDhcrelayBindsAndRenews dhcp.TestMachineBehindDhcrelayIsNamedByItsPort"},
	{10, "a client that gets classless routes ignores the router", "dhcp.TestRouterIsNeverHiddenByClasslessRoutes dhcp.TestRoutesGoToWhoAsksForThemWithTheDefaultRouteAmongThem dhcp.TestRealClientsReadTheRoutes"},
	{11, "what every client needs is sent, asked for or not", "dhcp.TestWhatEveryClientNeedsIsSentAskedForOrNot"},
	{12, "PXE wants its class and identifier back, and may leave out its own", "dhcp.TestFirmwareIsAnsweredAsPXEWhateverItLeavesOut"},
	{13, "UUIDs are mixed-endian, and not unique", "dhcp.TestUUIDIsNeverAKeyByItself"},
	{14, "a ProxyDHCP offer holds boot options and no address", "dhcp.TestProxyOfferHoldsBootOptionsOnly dhcp.TestProxyBesideDnsmasq"},
	{15, "the boot server answers from port 4011", "dhcp.TestProxyNamesTheBootFileAndNoAddress dhcp.TestProxyBesideDnsmasq"},
	{16, "discovery control and prompt spare edk2 the boot server", "dhcp.TestPXEVendorOptionHoldsNoServersNorMenu dhcp.TestProxyOfferHoldsBootOptionsOnly"},
	{17, "boot servers and menus in option 43 mislead", "dhcp.TestPXEVendorOptionHoldsNoServersNorMenu"},
	{18, "edk2 ranks offers", "dhcp.TestOurOfferIsTheKindThatEdk2Prefers"},
	{19, "some UEFI never merges two offers", "dhcp.TestOurOfferIsTheKindThatEdk2Prefers dhcp.TestCapturedFirmwareGetsWhatItBoots"},
	{20, "iPXE waits for a proxy unless told not to", "dhcp.TestIPXEGetsItsScriptByEitherMark"},
	{21, "iPXE marks itself by 77 or 175", "dhcp.TestIPXEGetsItsScriptByEitherMark dhcp.TestCapturedFirmwareGetsWhatItBoots"},
	{22, "a user class set by hand hides iPXE", "dhcp.TestIPXEGetsItsScriptByEitherMark"},
	{23, "the architectures of option 93", "dhcp.TestArchitectureChoosesTheLoader"},
	{24, "HTTP Boot wants its class and a URL", "dhcp.TestHTTPBootGetsItsClassAndAURL dhcp.TestCapturedFirmwareGetsWhatItBoots"},
	{25, "edk2 asks HEAD before GET, and needs the length", "ipxe.TestHandOverFilesByHTTP dhcp.TestCapturedFirmwareGetsWhatItBoots"},
	{26, "never a name for HTTPClient, never a URL for PXEClient", "dhcp.TestNeverAURLForPXENorANameForHTTPBoot"},
	{27, "DHCPv6: URL, parameters, relays, rapid commit", "dhcp.TestDHCPv6BootOptionsPerClient dhcp.TestDHCPv6ReplyByMessageAndState dhcp.TestRelaysAreAnsweredInTheirOrder dhcp.TestDhclientBindsConfirmsRenewsAndReleasesIPv6"},
	{28, "edk2 drops an offer whose boot parameters it dislikes", "dhcp.TestDHCPv6BootOptionsPerClient"},
	{29, "DUIDs of firmware and system, option 79", "dhcp.TestOneIPv6AddressWhateverTheMachineCallsItself dhcp.TestMachineBehindARelayIsKnown"},
	{30, "U-Boot by its own name, then as UEFI", "dhcp.TestCapturedFirmwareGetsWhatItBoots"},
	{31, "the Raspberry Pi 3 says that it is a PC, and asks for too little", "dhcp.TestRaspberryPiNeverGetsAPCsLoader dhcp.TestWhatEveryClientNeedsIsSentAskedForOrNot"},
	{32, "so do the Raspberry Pi 4 and 5", "dhcp.TestRaspberryPiNeverGetsAPCsLoader"},
	{33, "ONIE takes many options for an installer", "dhcp.TestONIEGetsAnAddressAndNoInstaller"},
	{34, "TFTP options, and ROMs that only ask the size", "tftp.TestReadMatrix tftp.TestSizeProbeIsNoFailure tftp.TestRequestsAreUnderstoodOrRefused tftp.TestRealClientsFetchALoader"},
	{35, "TFTP windows", "tftp.TestAWindowBeginsBehindWhatArrived tftp.TestNothingIsSentTwiceWithoutNeed tftp.TestRealClientsFetchALoaderThroughLoss"},
	{36, "a port for each transfer, the address that was asked, no strangers", "tftp.TestAnswersComeFromTheAddressThatWasAsked tftp.TestAStrangerIsRefusedAndDoesNotEndTheTransfer tftp.TestNobodyElseOnThisHostTakesPartInATransfer"},
	{37, "INFORM, DECLINE, RELEASE", "dhcp.TestInformIsAnsweredWithoutAddressAndLease dhcp.TestUdhcpcBindsRenewsAndReleases dhcp.TestDeclineQuarantinesAndPicksAnother"},
	{38, "spanning tree: late and repeated packets", "dhcp.TestRepeatedAndLatePacketsGetTheSameAnswer"},
}

func TestEveryBehaviourOfTheChecklistHasItsTests(t *testing.T) {
	have := map[string]bool{}
	for _, pkg := range []string{"dhcp", "tftp", "ipxe"} {
		files, err := filepath.Glob(pkg + "/*_test.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pkg, len(files), err)
		}
		for _, f := range files {
			tree, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range tree.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
					have[pkg+"."+fn.Name.Name] = true
				}
			}
		}
	}
	for i, c := range checklist {
		if c.row != i+1 || c.behaviour == "" || c.tests == "" {
			t.Errorf("row %d is %+v", i+1, c)
		}
		for _, name := range strings.Fields(c.tests) {
			if !have[name] {
				t.Errorf("row %d, %s: there is no %s", c.row, c.behaviour, name)
			}
		}
	}
	if len(checklist) != 38 {
		t.Errorf("%d rows", len(checklist))
	}
}
