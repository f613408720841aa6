package testenv

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// simFelt is all that a machine and its BMC went through.
type simFelt struct {
	stops, starts, sets, erases int
	written                     int64
}

func (s *Simulated) felt() simFelt {
	f := s.front()
	return simFelt{s.Stops(), f.Done("power-on"), f.Done("set-boot"), len(s.Disks[0].Erases()), s.Disks[0].Written()}
}

// TestExchangedBMCsNeverSwitchNorReimageTheWrongMachine exchanges the bmc.url of machines
// that run, by either protocol and across them, and re-images: no machine may feel it,
// neither at once nor after a kill, a retry or an operator's order, until the files are right
// again.
func TestExchangedBMCsNeverSwitchNorReimageTheWrongMachine(t *testing.T) {
	t.Parallel()
	for _, shy := range []bool{false, true} {
		t.Run(fmt.Sprintf("serials not declared %t", shy), func(t *testing.T) {
			t.Parallel()
			s, image := newSimRack(t, 4, nil) // IPMI, Redfish, IPMI, Redfish
			m := s.machines
			round := 0
			declare := func(pairs ...[2]*Simulated) simDeclare {
				round++
				d := simDeclare{Image: image, Spec: simQuick, Shy: shy, UserData: fmt.Sprintf("#cloud-config\nhostname: ${machine.name}\n# %d\n", round), Behind: map[string]*Simulated{}}
				for _, p := range pairs {
					d.Behind[p[0].Options.Name], d.Behind[p[1].Options.Name] = p[1], p[0]
				}
				return d
			}
			arrive := func() {
				t.Helper()
				before := map[*Simulated]simFelt{}
				for _, m := range m {
					before[m] = m.felt()
				}
				s.apply(declare())
				for _, m := range m {
					v := s.awaitActive(m.Options.Name, 60*time.Second)
					now, was := m.felt(), before[m]
					if round > 1 && (now.stops != was.stops+1 || now.starts != was.starts+1 || now.erases != was.erases+1) || len(v.Status.Findings) != 0 {
						t.Errorf("%s went from %+v to %+v, findings %q", m.Options.Name, was, now, v.Status.Findings)
					}
				}
			}
			arrive()
			for _, pairs := range [][][2]*Simulated{
				{{m[0], m[2]}, {m[1], m[3]}},
				{{m[0], m[1]}, {m[2], m[3]}},
			} {
				before := map[*Simulated]simFelt{}
				for _, m := range m {
					before[m] = m.felt()
				}
				refused := func(when string) {
					t.Helper()
					for _, m := range m {
						v := s.awaitFailed(m.Options.Name, 30*time.Second, "nothing was switched")
						other := ""
						for _, p := range pairs {
							if p[0] == m {
								other = p[1].Options.Serial
							} else if p[1] == m {
								other = p[0].Options.Serial
							}
						}
						found := strings.Join(v.Status.Findings, "\n")
						if !strings.Contains(found, m.Options.Serial+" before, "+other+" now") || !strings.Contains(v.Status.NextAction, "recast bmc enrol "+m.Options.Name) || v.Status.Attempt != 1 {
							t.Errorf("%s: %v, want both serials and what to do", when, v)
						}
					}
					for _, m := range m {
						if now := m.felt(); now != before[m] || !m.Powered() || !m.runsSystem() {
							t.Errorf("%s: %s went from %+v to %+v", when, m.Options.Name, before[m], now)
						}
					}
				}
				s.apply(declare(pairs...))
				refused("at once")
				s.kill()
				s.start()
				for _, m := range m {
					name := m.Options.Name
					refusals := func() (n int) {
						for _, l := range s.timeline(name) {
							if l.Kind == "error" && strings.Contains(l.Text, "nothing was switched") {
								n++
							}
						}
						return n
					}
					already := refusals()
					s.must(http.MethodPost, "/api/v1/machines/"+name+"/retry", nil, nil)
					s.await(name+" has tried again", 30*time.Second, func() bool { return refusals() > already })
				}
				refused("after a kill and a retry")
				for _, m := range m {
					for _, verb := range []string{"off", "cycle", "on"} {
						err := s.call(http.MethodPost, "/api/v1/machines/"+m.Options.Name+"/power", map[string]any{"verb": verb}, nil)
						if err == nil || !strings.Contains(err.Error(), "nothing was switched") {
							t.Errorf("power %s of %s: %v", verb, m.Options.Name, err)
						}
					}
				}
				refused("after an operator's power")
				arrive()
			}
		})
	}
}
