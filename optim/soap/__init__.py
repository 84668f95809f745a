"""SOAP's preconditioner: Adam in the slowly turning eigenbasis of Shampoo's Kronecker factors.

One idea per file: layout of a tensor, its factors, their basis, rotation, schedule, rule.
"""
