"""Tests. Their folders mirror the packages of mirai_bench; what several of them share lies in support/."""
