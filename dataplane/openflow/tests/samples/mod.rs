//! Flows and groups of every kind, in the words in which people write them.

/// Flows of every kind that a pipeline needs, in the words in which people write them.
pub(crate) const FLOWS: &[&str] = &[
    "cookie=0x123456789abcdef0,table=0,priority=100,ip,in_port=1,dl_src=02:00:00:00:00:01,nw_src=10.0.0.1 actions=set_field:0x5->metadata,set_field:7->reg3,load:1->NXM_NX_REG0[3],set_field:0x2/0x2->reg0,goto_table:10",
    "table=0,priority=110,udp,in_port=1,nw_src=0.0.0.0,tp_src=68,tp_dst=67 actions=controller(pause,userdata=01.02.03,max_len=65535)",
    "table=0,priority=90,in_port=2,tun_id=5000 actions=set_field:0x7->xreg2,goto_table:10",
    "table=0,priority=89,ipv6,in_port=2 actions=set_field:0x7->xxreg2,set_field:::1->ipv6_dst,goto_table:10",
    "table=0,priority=80,dl_vlan=7,dl_vlan_pcp=3 actions=pop_vlan,goto_table:10",
    "table=0,priority=79,vlan_tci=0x0000/0x1fff actions=push_vlan:0x8100,set_field:4103->vlan_vid,NORMAL",
    "table=0,priority=78,vlan_tci=0x1000/0x1000 actions=strip_vlan,goto_table:10",
    "table=0,priority=77,dl_vlan_pcp=2 actions=drop",
    "table=0,priority=76,dl_vlan=0xffff,in_port=LOCAL actions=drop",
    "table=0,priority=0 actions=drop",
    "table=5,priority=100,arp,metadata=0x5,arp_tpa=10.0.0.254,arp_op=1 actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:02:01:00:00:00:01->eth_src,set_field:2->arp_op,move:arp_sha->arp_tha,set_field:02:01:00:00:00:01->arp_sha,move:arp_spa->arp_tpa,set_field:10.0.0.254->arp_spa,set_field:0->in_port,IN_PORT",
    "table=5,priority=90,icmp6,icmp_type=135,icmp_code=0,nd_target=fe80::1,nd_sll=02:00:00:00:00:01 actions=set_field:136->icmpv6_type,set_field:2->nd_options_type,set_field:0xe0000000->nd_reserved,move:ipv6_src->ipv6_dst,IN_PORT",
    "table=10,priority=100,ip,xxreg0=0x1000000020000000300000004,nw_dst=10.1.0.0/16 actions=dec_ttl,resubmit(,20)",
    "table=10,priority=99,xreg1=0x100000000/0xff00000000 actions=resubmit(3,),resubmit:4,resubmit(5,6)",
    "table=10,priority=98,ip,nw_tos=184,nw_ecn=1,nw_ttl=64 actions=set_field:10->ip_dscp,mod_nw_src:10.9.9.9",
    "table=10,priority=97,ip,nw_frag=later actions=drop",
    "table=10,priority=96,tcp,nw_frag=not_later,tp_dst=0x1f00/0xff00,tcp_flags=+syn-ack actions=group:7",
    "table=20,priority=100,ip actions=ct(zone=NXM_NX_REG3[0..15],table=21)",
    "table=21,priority=100,ct_state=+trk+inv actions=drop",
    "table=21,priority=90,ct_state=-new+est+rpl+trk,ct_mark=0,ip actions=goto_table:30",
    "table=21,priority=80,ct_state=+trk+est-inv,ct_nw_src=10.0.0.0/8,ct_nw_proto=6,ct_tp_dst=80,ip,ct_zone=7,ct_label=0x5/0xf actions=ct_clear,goto_table:22",
    "table=22,priority=90,ip,reg4=0x1 actions=conjunction(10,1/2),conjunction(11,1/3)",
    "table=22,priority=91,ip,reg5=0x1 actions=conjunction(10,2/2)",
    "table=22,priority=92,conj_id=10,ip actions=note:01.02.03,goto_table:24",
    "table=24,priority=100,ct_state=+new+trk,ip actions=ct(commit,zone=NXM_NX_REG3[0..15],exec(set_field:0x1/0x1->ct_mark,set_field:0x5->ct_label)),goto_table:30",
    "table=24,priority=99,ct_state=+new+trk,ip actions=ct(commit,zone=5,nat(src=192.0.2.1-192.0.2.9:1024-2048,random)),goto_table:30",
    "table=24,priority=98,ct_state=+trk,ipv6 actions=ct(table=25,zone=5,nat)",
    "table=24,priority=97,tcp6 actions=ct(commit,force,zone=5,alg=ftp,nat(dst=[2001:db8::1]:80))",
    "table=30,priority=100,reg2=0x1 actions=output:1",
    "table=30,priority=99,reg2=0x2 actions=set_field:0x1389->tun_id,set_field:172.20.0.2->tun_dst,output:2",
    "table=30,priority=98,reg2=0x3 actions=output:NXM_NX_REG7[0..15]",
    "table=30,priority=97,reg2=0x4 actions=output(port=1,max_len=100),clone(set_field:1->reg1,output:2),CONTROLLER:128",
    "table=30,priority=96,reg2=0x5 actions=check_pkt_larger(1400)->NXM_NX_REG0[5],push:NXM_NX_REG0[],pop:NXM_NX_REG1[],goto_table:31",
    "table=31,idle_timeout=60,hard_timeout=600,importance=3,send_flow_rem,no_packet_counts,priority=5,pkt_mark=0x1/0xf actions=multipath(symmetric_l4,5,modulo_n,4,0,NXM_NX_REG1[0..3]),exit",
    "table=32,priority=1 actions=learn(table=33,hard_timeout=30,priority=9,NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],output:NXM_OF_IN_PORT[]),learn(table=34,limit=5,result_dst=NXM_NX_REG0[7],eth_type=0x800,NXM_NX_REG1[0..7]=0x3)",
    "table=40,priority=3,tcp actions=clear_actions,write_actions(output:1,group:7),write_metadata:0x5/0xf,goto_table:41",
    "table=40,priority=2,icmp,icmp_type=8,icmp_code=0 actions=meter:3,controller(reason=no_match,id=4,meter_id=3),dec_ttl(1,2)",
    "table=41,priority=1,tun_src=172.20.0.0/16,tun_ipv6_dst=2001:db8::/32,tun_flags=+oam actions=drop",
    "table=41,priority=2,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 actions=group:8",
    "table=41,priority=3,ipv6,ipv6_src=2001:db8::/64,ipv6_label=0x12345 actions=set_queue:3,output:1,pop_queue",
    "table=41,priority=4,sctp,tp_src=5 actions=drop",
    "table=41,priority=5,dl_type=0x88cc actions=drop",
    "table=41,priority=6,rarp,arp_sha=02:00:00:00:00:01 actions=drop",
    "table=42,priority=1 actions=sample(probability=65535,collector_set_id=1,obs_domain_id=2,obs_point_id=3),sample(probability=5,collector_set_id=1,obs_domain_id=2,obs_point_id=3,sampling_port=4),sample(probability=5,collector_set_id=1,obs_domain_id=2,obs_point_id=3,sampling_port=4,egress)",
    "table=42,priority=2 actions=bundle(eth_src,5,hrw,ofport,members:1,2,3),bundle_load(symmetric_l4,0,active_backup,ofport,NXM_NX_REG0[0..15],members:4,5)",
    "table=42,priority=3,tcp actions=fin_timeout(idle_timeout=5,hard_timeout=6)",
    "table=42,priority=4,ip actions=push_mpls:0x8847,output:1",
    "table=42,priority=5,mpls,mpls_label=5,mpls_tc=2,mpls_ttl=6,mpls_bos=1 actions=set_field:5->mpls_label,set_field:2->mpls_tc,set_field:3->mpls_ttl,dec_mpls_ttl,pop_mpls:0x0800",
    "table=42,priority=6,actset_output=3,tun_gbp_id=5,tun_gbp_flags=0x40,pkt_mark=1,ct_state=+trk actions=drop",
    "table=42,priority=7,packet_type=(1,0x800) actions=drop",
    "table=42,priority=8,ip actions=set_field:6->nw_ttl,set_field:4->ip_dscp,set_field:2->nw_ecn,set_queue:2,output:1,pop_queue",
];

/// Flows that a switch keeps for itself: it refuses them from anybody else.
pub(crate) const REFUSED_FLOWS: &[&str] =
    &["table=43,priority=1,recirc_id=5 actions=drop", "table=43,priority=2,dp_hash=0x5/0xf actions=drop"];

/// Groups of every kind.
pub(crate) const GROUPS: &[&str] = &[
    "group_id=7,type=select,selection_method=dp_hash,bucket=bucket_id:1,weight:100,actions=set_field:1->reg1,output:1,bucket=bucket_id:2,actions=output:2",
    "group_id=8,type=all,bucket=bucket_id:0,actions=output:1,bucket=bucket_id:1,actions=set_field:2->reg2,resubmit(,30)",
    "group_id=9,type=fast_failover,bucket=bucket_id:0,watch_port:1,actions=output:1,bucket=bucket_id:5,watch_group:8,actions=group:8",
    "group_id=10,type=indirect,bucket=bucket_id:0,actions=dec_ttl,output:2",
    "group_id=11,type=select,selection_method=hash,fields(eth_src,ip_dst),bucket=bucket_id:0,weight:0,actions=drop",
];
