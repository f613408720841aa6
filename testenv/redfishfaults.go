package testenv

// RedfishFaults are the ways of Redfish BMCs alone; the zero value has none.
type RedfishFaults struct{}
